"""`chunkrl evaluate`: a trained policy of any kind on MetaWorld, from fixed initial states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from chunkrl.algorithms.conditioning import conditions_beside
from chunkrl.build import choose_device
from chunkrl.data.atomic import write_text
from chunkrl.envs.metaworld import ACTION_DIM, CAMERA, STATE_NAMES, MetaWorldEnv, State
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.rollout import Rollouts, evaluate, initial_seeds
from chunkrl.evaluation.statistics import wilson_interval
from chunkrl.models.pi.actor import PiActor
from chunkrl.models.pi.policy import DEFAULT_NUM_STEPS
from chunkrl.progress import Progress
from chunkrl.training.policy_io import ActionMode, ChunkPolicy, load_policy

_LEAST = {"num_episodes": 1, "num_envs": 1, "max_steps": 1, "num_candidates": 1, "seed": 0, "camera_size": 1}


@dataclass(frozen=True)
class EvaluateCommand:
    """A trained policy on MetaWorld, from fixed initial states."""

    policy: str = "runs/train/policy"
    """A saved policy's folder: a run's `policy`, or any pi folder that says its settings."""
    env: str = "push-v3"
    """MetaWorld task."""
    num_episodes: int = 100
    """Initial states."""
    seed: int = 0
    """Determines the initial states: equal seeds compare policies on equal states."""
    max_steps: int = 150
    """Time limit, steps."""
    exec_steps: int | None = None
    """Actions executed of each chunk; default: the whole chunk."""
    mode: ActionMode = "mode"
    """mode (most likely chunk; a flow from zero noise), sample, or best_of_n (needs training with --train-q)."""
    num_candidates: int = 16
    """N of best_of_n."""
    condition: str | None = None
    """What a pi policy is asked for, e.g. "Advantage: negative"; "" for nothing; default: what it was saved with."""
    guidance: float | None = None
    """Classifier-free guidance of a pi policy towards the condition; default: what it was saved with."""
    num_steps: int | None = None
    """Euler steps of a pi policy; default 10."""
    camera_size: int | None = None
    """Side of the camera's pictures, pixels, for a policy with a camera: the data's; default: a pi policy's input."""
    num_envs: int = 10
    """Simulators stepped together."""
    device: str = "auto"
    """cpu, cuda, or auto."""
    output: str | None = None
    """JSON file for the result."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ChunkRLError(f"{name} is {value}; it must be at least {least}")
        if self.mode not in get_args(ActionMode):
            raise ChunkRLError(f"mode is {self.mode!r}; use one of {', '.join(get_args(ActionMode))}")


def evaluate_policy(command: EvaluateCommand, progress: Progress) -> None:
    """Prints the success rate with its Wilson interval, and writes it where asked."""
    policy = load_policy(command.policy, choose_device(command.device))
    asked = _ask(policy, command)
    observed = _observed(policy, command)
    envs = [
        MetaWorldEnv(command.env, command.max_steps, **observed)
        for _ in range(min(command.num_envs, command.num_episodes))
    ]
    actor = partial(policy.act, mode=command.mode, num_candidates=command.num_candidates)
    exec_steps = policy.action_horizon if command.exec_steps is None else command.exec_steps
    seeds = initial_seeds(command.seed, command.num_episodes)
    rollouts = evaluate(actor, envs, seeds, exec_steps, progress, f"evaluate {command.env}")
    num_success = int(rollouts.success.sum())
    interval = wilson_interval(num_success, command.num_episodes)
    print(
        f"{command.env}: success {num_success}/{command.num_episodes} = {rollouts.success.mean():.2f}, "
        f"95 % interval [{interval.low:.2f}, {interval.high:.2f}], {exec_steps} actions of each chunk executed"
        + (
            f", asked for {asked['condition']!r} at guidance {asked['guidance']:g}"
            if asked["condition"]
            else ""
        )
    )
    if command.output:
        record = {
            "env": command.env,
            "policy": command.policy,
            "mode": command.mode,
            **asked,
            **observed,
            "success": float(rollouts.success.mean()),
            "interval": [interval.low, interval.high],
            "num_episodes": command.num_episodes,
            "seed": command.seed,
            "exec_steps": exec_steps,
            "episodes": _episodes(rollouts),
        }
        write_text(command.output, json.dumps(record, indent=2) + "\n")


def _episodes(rollouts: Rollouts) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "success": bool(ok), "num_steps": int(steps)}
        for seed, ok, steps in zip(rollouts.seeds, rollouts.success, rollouts.num_steps, strict=True)
    ]


def _ask(policy: ChunkPolicy | PiActor, command: EvaluateCommand) -> dict[str, Any]:
    """Sets what a pi policy is asked for: condition, guidance, num_steps, as the result names them."""
    flags = ("condition", "guidance", "num_steps")
    if not isinstance(policy, PiActor):
        given = [f"--{name.replace('_', '-')}" for name in flags if getattr(command, name) is not None]
        if given:
            raise ChunkRLError(
                f"{' and '.join(given)} are for pi policies, and {command.policy} is a small one: leave them out"
            )
        return dict.fromkeys(flags)
    if command.mode == "best_of_n":
        raise ChunkRLError(
            "best_of_n needs Q(x, A), which a pi policy's folder does not hold: use --mode mode or sample"
        )
    settings = policy.policy.recipe.settings
    policy.condition = settings.condition if command.condition is None else command.condition
    policy.guidance = settings.guidance if command.guidance is None else command.guidance
    policy.num_steps = DEFAULT_NUM_STEPS if command.num_steps is None else command.num_steps
    known = conditions_beside(settings.condition)
    if policy.condition not in known:
        trained = "without any" if known == ("",) else f"with {', '.join(repr(c) for c in known if c)}"
        raise ChunkRLError(
            f"--condition {policy.condition!r} is not what {command.policy} was trained with ({trained}): give one "
            'of these, or "" to ask for nothing'
        )
    if command.guidance is not None and not policy.condition:
        raise ChunkRLError(
            "--guidance leads towards a condition, and the policy is asked for none: leave it out, or evaluate a "
            "policy of --objective advantage_conditioned"
        )
    if policy.guidance < 0:
        raise ChunkRLError(f"guidance is {policy.guidance}; it must not be negative")
    return {name: getattr(policy, name) for name in flags}


def _observed(policy: ChunkPolicy | PiActor, command: EvaluateCommand) -> dict[str, Any]:
    """`state` and `camera_size` of an environment that gives what the policy takes."""
    states: dict[int, State] = {len(names): state for state, names in STATE_NAMES.items()}
    if policy.action_dim != ACTION_DIM or policy.state_dim not in (0, *states):
        widths = " or ".join(f"{width} ({state})" for width, state in states.items())
        raise ChunkRLError(
            f"the policy has {policy.action_dim} action and {policy.state_dim} state values, MetaWorld has "
            f"{ACTION_DIM} and {widths}: it was trained for another environment"
        )
    if tuple(policy.cameras) not in ((), (CAMERA,)):
        raise ChunkRLError(
            f"the policy needs the cameras {list(policy.cameras)}, and MetaWorld has the one camera {CAMERA!r}: "
            "evaluate a policy that was trained on data of chunkrl collect, with --camera-size or on state alone "
            "(--cameras with no name)"
        )
    size = command.camera_size
    if policy.cameras and size is None:
        if not isinstance(policy, PiActor):
            raise ChunkRLError(
                f"the policy sees camera {CAMERA!r}: say with --camera-size how large the pictures of its data were, "
                "as in chunkrl collect"
            )
        size = policy.policy.recipe.config.vision.image_size
    if not policy.cameras and size is not None:
        raise ChunkRLError("--camera-size is for policies with a camera, and this one has none: leave it out")
    return {"state": states.get(policy.state_dim, "full"), "camera_size": size or 0}
