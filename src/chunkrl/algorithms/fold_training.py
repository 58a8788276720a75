"""The folds' networks in training: their optimisers and averages, whose turn it is, and where each lies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from chunkrl import ranks
from chunkrl.algorithms.cross_fit import CrossFitted
from chunkrl.algorithms.value_config import FoldOrder
from chunkrl.errors import ChunkRLError
from chunkrl.training.config import OptimConfig
from chunkrl.training.distributed import shard
from chunkrl.training.optim import Optimizer, update_ema


class FoldTraining:
    """K networks that learn from the same batches, `num_updates` of them.

    `together`: an update is one of every network. They share what is computed of the batch before them, and all
    networks and moments are on the device.
    `one_by_one`: each network has a pass of its own over all batches. One network and its moments are on the device,
    the others wait on the CPU: the memory of one, and what they would share is computed K times. Without dropout and
    noise the networks become the same ones, to the bit.

    Args:
        make: builds a fresh network, K times.
        target_rate: of a moving average of each network; None: there is none.
        num_critics: M, networks per fold: all of them are networks here, and K M the number of them.

    Raises:
        ChunkRLError: one by one on several processes.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        num_folds: int,
        optim: OptimConfig,
        num_updates: int,
        device: torch.device,
        order: FoldOrder = "together",
        target_rate: float | None = None,
        num_critics: int = 1,
    ) -> None:
        if order == "one_by_one" and ranks.world_size() > 1:
            raise ChunkRLError(
                "--fit.fold-order one_by_one is for one process: several divide the networks; use together"
            )
        waits = device if order == "one_by_one" else None
        self.networks = CrossFitted(lambda: make().to(device), num_folds, waits, num_critics)
        self._optim, self._num_updates, self._rate = optim, num_updates, target_rate
        self.targets: CrossFitted | None = None
        if target_rate is not None:
            self.targets = shard(copy.deepcopy(self.networks).requires_grad_(False).eval())
        shard(self.networks)
        self._in_turn = ExitStack()
        self._num_done = 0
        self.optimizers: dict[int, Optimizer] = {}
        self.num_passes = len(self.networks.networks) if order == "one_by_one" else 1
        self._take_turn()

    def _take_turn(self) -> None:
        """Brings the networks whose turn it is, and their optimisers into `optimizers`, by number."""
        numbers = range(len(self.networks.networks))
        if self.num_passes > 1:
            turn = min(self._num_done // self._num_updates, self.num_passes - 1) if self._num_updates else 0
            numbers = range(turn, turn + 1)
        if list(self.optimizers) == list(numbers):
            return
        self.end_turn()
        for k in numbers:
            self._in_turn.enter_context(self.networks.at_work(k))
            self.optimizers[k] = Optimizer(
                [self.networks.networks[k].parameters()], self._optim, self._num_updates
            )

    def end_turn(self) -> None:
        """Puts the networks back to where they wait, without their optimisers."""
        self.optimizers.clear()
        self._in_turn.close()

    def end_update(self) -> None:
        """After an update of the networks in `optimizers`: moves their averages, and begins the next turn."""
        if self.targets is not None and self._rate is not None:
            for k in self.optimizers:
                with self.targets.at_work(k):
                    update_ema(self.targets.networks[k], self.networks.networks[k], self._rate)
        self._num_done += 1
        self._take_turn()

    def state_dict(self) -> dict[str, Any]:
        """Networks, averages, the optimisers of those whose turn it is, and the number of updates."""
        state: dict[str, Any] = {
            "num_done": self._num_done,
            "networks": self.networks.state_dict(),
            "optimizers": {str(k): optimizer.state_dict() for k, optimizer in self.optimizers.items()},
        }
        return state if self.targets is None else state | {"targets": self.targets.state_dict()}

    def take_networks(self, state: dict[str, Any]) -> None:
        """Goes on from another training's `state_dict`: its networks, averages and moments; updates, and with them
        learning rates, count from 0."""
        self.networks.load_state_dict(state["networks"])
        if self.targets is not None:
            self.targets.load_state_dict(state.get("targets", state["networks"]))
        if self.num_passes == 1 and len(state["optimizers"]) == len(self.optimizers):
            for k, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][str(k)] | {"num_applied": 0})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._num_done = int(state["num_done"])
        self._take_turn()
        self.networks.load_state_dict(state["networks"])
        if self.targets is not None:
            self.targets.load_state_dict(state["targets"])
        for k, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][str(k)])
