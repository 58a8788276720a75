"""The actor's side of the link to a learner, and what becomes of a spool without one.

An actor's line to the learner: its spool is sent and newer weights are fetched, both in the background.

What becomes of an actor's spool when nobody acts: it is sent to a learner, or stored as a data set.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from chunkrl.errors import ChunkRLError
from chunkrl.online.actor.command import ActorCommand
from chunkrl.online.learner.intake import store_recordings
from chunkrl.online.link.config import ConnectConfig
from chunkrl.online.link.records import Hello
from chunkrl.online.link.sender import LearnerClient, SpoolSender, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import STREAM_FILE, read_actor_stream
from chunkrl.online.link.weights import Taken, WeightFetcher
from chunkrl.signals import handled

_LOG = logging.getLogger(__name__)
_POLL_S = 0.1
FETCH_EVERY_S = 1.0


@dataclass(frozen=True)
class LinkState:
    """address: the learner's; "" without one. reachable: whether it answered last. num_unsent: records that it has
    not confirmed. version: of the newest weights taken; num_steps: the recorded steps they account for, of all
    actors; own_steps: at least so many of these are this one's (None: the learner is an older one).
    num_refused: pushes that did not fit. problem: what ended sending or fetching for good, or why weights were
    refused last; "" where all is well."""

    address: str = ""
    reachable: bool = False
    num_unsent: int = 0
    version: int = 0
    num_steps: int = 0
    own_steps: int | None = 0
    num_refused: int = 0
    problem: str = ""

    def __str__(self) -> str:
        if not self.address:
            return f"no learner (offline), {self.num_unsent} records kept"
        reached = "connected" if self.reachable else "NOT REACHED"
        return f"{self.address} {reached}, {self.num_unsent} records unsent"


class LearnerLink:
    """Sends `spool`, fetches weights; goes on after every failure that may pass, also if no learner is there yet."""

    def __init__(
        self,
        connect: ConnectConfig,
        hello: Hello,
        spool: Spool,
        take: Callable[[int, Mapping[str, Tensor]], None] | None,
        fetch_every_s: float = FETCH_EVERY_S,
    ) -> None:
        """
        Args:
            take: version and tensors of newer weights (`PolicyRunner.push`); None: none are fetched.

        Raises:
            TransportError: the learner is there and refuses this actor, or its folder and the spool do not fit.
        """
        self._address = connect.address
        self._client = LearnerClient(connect, hello, spool)
        self._offered = 0
        with contextlib.ExitStack() as opened:
            opened.callback(self._client.close)
            try:
                self._offered = self._client.greet().weights_version
            except UnreachableError as error:
                _LOG.info("at the start: %s", error)  # the sender warns, and tries again
            opened.pop_all()
        self._sender = SpoolSender(self._client, spool)
        self._fetcher = None
        if take is not None:
            self._fetcher = WeightFetcher(self._client.fetch_weights, take, fetch_every_s)

    def state(self) -> LinkState:
        """Now; from any thread."""
        sender, fetcher = self._sender, self._fetcher
        taken = fetcher.taken if fetcher else Taken()
        problems = [sender.failure, fetcher and (fetcher.failure or fetcher.refusal)]
        return LinkState(
            self._address,
            sender.reachable,
            sender.pending,
            taken.version,
            taken.num_steps,
            taken.own_steps,
            fetcher.num_refused if fetcher else 0,
            next((str(problem) for problem in problems if problem), ""),
        )

    def wait_first_weights(self, timeout_s: float) -> bool:
        """Waits for the weights that the learner had on offer when it was greeted, so that the first episode has them
        (also if they turn out not to fit); False where `timeout_s` pass."""
        deadline = time.monotonic() + timeout_s
        fetcher = self._fetcher
        while fetcher is not None and max(fetcher.version, fetcher.num_refused) == 0 and self._offered:
            if fetcher.failure or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S / 2)
        return True

    def finish(self, timeout_s: float, stopped: threading.Event) -> int:
        """Waits until all is sent, at most `timeout_s`, or until `stopped`; returns how many records are left."""
        deadline = time.monotonic() + timeout_s
        while self._sender.pending and not self._sender.failure and not stopped.is_set():
            if time.monotonic() > deadline:
                break
            stopped.wait(_POLL_S)
        return self._sender.pending

    def close(self) -> None:
        """Ends both threads; what is not confirmed stays in the spool."""
        self._sender.close()
        if self._fetcher is not None:
            self._fetcher.close()
        self._client.close()


DATA_FOLDER = "data"
"""In the run folder: what was recorded offline, as a data set."""


def send_spool(command: ActorCommand, spool_dir: Path, resources: contextlib.ExitStack) -> None:
    """What the spool holds, without acting."""
    stream = stream_file(spool_dir)
    actor_id, spec = read_actor_stream(stream)
    spool = resources.enter_context(Spool(spool_dir))
    print(f"{spool.num_waiting} records of {actor_id} wait in {spool_dir}")
    link = LearnerLink(command.connect, Hello(actor_id, spool.spool_id, spec), spool, take=None)
    resources.callback(link.close)
    say_left(finish_sending(link, command.finish_s), command, spool_dir, link)


def store_spool(spool_dir: Path, run_dir: Path) -> None:
    """What the spool holds, as a data set in the run folder; SIGINT and SIGTERM end it, and the next call goes on."""
    stream_file(spool_dir)
    stopped = threading.Event()
    root = run_dir / DATA_FOLDER
    print(f"storing finished episodes in {root} (Control-C: later)", flush=True)
    with handled(stopped.set):
        stored = store_recordings(spool_dir, root, keep=True, stopped=stopped.is_set)
    if stored.num_episodes:
        print(f"data set: {stored.folder}, {stored.num_episodes} episodes, {stored.num_steps} steps")
    else:
        print("no episode was finished and kept: there is no data set")
    if stored.num_set_aside:
        print(f"{stored.num_set_aside} unfinished or damaged episodes are set aside in {root / 'set_aside'}")
    if not stored.is_whole:
        print(
            f"the rest is stored by: chunkrl actor --output-dir {run_dir} --spool {spool_dir} --export-only"
        )


def finish_sending(link: LearnerLink, timeout_s: float) -> int:
    """Waits for the rest to be sent; SIGINT and SIGTERM end the waiting."""
    stopped = threading.Event()
    if left := link.state().num_unsent:
        print(f"sending {left} records to {link.state().address}, at most {timeout_s:g} s (Control-C: later)")
    with handled(stopped.set):
        return link.finish(timeout_s, stopped)


def say_left(left: int, command: ActorCommand, spool_dir: Path, link: LearnerLink | None) -> None:
    """Tells what is left to be sent, and why sending ended."""
    if not left:
        print("all records are with the learner" if link else "no records")
        return
    print(
        f"{left} records are kept in {spool_dir}; the next start with this spool "
        f"{'without --offline ' if command.offline else ''}sends them, or --send-only does"
    )
    if link and (problem := link.state().problem):
        print(f"sending ended: {problem}", file=sys.stderr)


def stream_file(spool_dir: Path) -> Path:
    """What the spool's records are. Raises ChunkRLError where there is no spool."""
    stream = spool_dir / STREAM_FILE
    if not stream.is_file():
        raise ChunkRLError(f"{spool_dir} is no actor's spool (it lacks {STREAM_FILE}): name it with --spool")
    return stream
