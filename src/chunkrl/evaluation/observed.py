"""What a policy needs of an environment: tasks, state, cameras and sizes that it takes, or why it does not fit."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from chunkrl.data.roles import SAME_CAMERA
from chunkrl.envs.family import EnvInfo, EnvOptions
from chunkrl.envs.libero_tasks import InitialStates
from chunkrl.envs.offscreen import Rendering
from chunkrl.envs.pool import EnvPool, LocalPool
from chunkrl.envs.registry import check_rendering, describe, expand, make_env, prepare
from chunkrl.envs.workers import WorkerPool
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.evaluation_result import EvaluationSettings
from chunkrl.evaluation.rollout import Actor, Episode, initial_seeds
from chunkrl.models.acting_policy import ActingPolicy
from chunkrl.types import Observation


@dataclass(frozen=True)
class EnvRequest:
    """The environments of an evaluation, as its policy takes them.

    envs: tasks. info: of their kind. max_steps: each task's time limit. options: what is observed.
    rename: (environment's name, policy's name) of every camera.
    """

    envs: tuple[str, ...]
    info: EnvInfo
    max_steps: tuple[int, ...]
    options: EnvOptions
    rename: tuple[tuple[str, str], ...]


def fit_policy(
    policy: ActingPolicy,
    names: Sequence[str],
    max_steps: int | None,
    camera_size: int | None,
    rename: Sequence[str],
    rendering: Rendering = "default",
    initial: InitialStates = "official",
) -> EnvRequest:
    """The environments that give what the policy takes.

    Args:
        names: tasks or suites. max_steps: time limit; None: each task's own.
        camera_size: side of the images; None: as a small policy's data were recorded, which it resizes; for a pi
            policy the public data sets', or else its input.
        rename: "ENVIRONMENT'S=POLICY'S" camera names. rendering, initial: of LIBERO.

    Raises:
        ChunkRLError: no such task, tasks of two kinds, a rendering that they have not, or a state, action or camera
            that does not fit (says which).
    """
    envs = expand(names)
    info = describe(envs)
    check_rendering(envs, rendering)
    if initial == "sampled":
        if info.num_initial_states is None:
            raise ChunkRLError(
                f"--initial sampled: {info.kind} has no official initial states, --seed draws all: leave it out"
            )
        info = replace(info, num_initial_states=None)
    states = {len(entries): state for state, entries in info.states.items()}
    if policy.action_dim != info.action_dim or policy.state_dim not in (0, *states):
        widths = " or ".join(f"{width} ({state})" for width, state in states.items())
        raise ChunkRLError(
            f"the policy has {policy.action_dim} action and {policy.state_dim} state values, {info.kind} has "
            f"{info.action_dim} and {widths}: it was trained for another environment"
        )
    pairs = _rename(policy.cameras, info, rename)
    size = _camera_size(policy, info, camera_size)
    options = EnvOptions(
        max_steps,
        states.get(policy.state_dim, info.default_state),
        size,
        rendering=rendering,
        initial=initial,
    )
    return EnvRequest(envs, info, tuple(max_steps or info.max_steps[env] for env in envs), options, pairs)


def _rename(cameras: Sequence[str], info: EnvInfo, rename: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(environment's, policy's) name of every camera of the policy."""
    given = {}
    for pair in rename:
        ours, _, theirs = pair.partition("=")
        if ours not in info.cameras or theirs not in cameras:
            raise ChunkRLError(
                f"--rename {pair}: give ENVIRONMENT'S=POLICY'S; {info.kind} has {list(info.cameras)}, the policy "
                f"{list(cameras)}"
            )
        given[theirs] = ours
    pairs = []
    for camera in cameras:
        known = next((names for names in SAME_CAMERA if camera in names), (camera,))
        found = given.get(camera) or next((name for name in info.cameras if name in (camera, *known)), None)
        if found is None:
            raise ChunkRLError(
                f"the policy needs the camera {camera!r}, and {info.kind} has {list(info.cameras)}: say with "
                f"--rename ENVIRONMENT'S={camera} which one it is, or evaluate a policy that was trained on data of "
                "chunkrl collect, with --camera-size, or on the state alone (--cameras with no name)"
            )
        pairs.append((found, camera))
    if len({ours for ours, _ in pairs}) < len(pairs):
        raise ChunkRLError(
            f"two of the policy's cameras are one of {info.kind}'s ({pairs}): give each its own --rename"
        )
    return tuple(pairs)


def _camera_size(policy: ActingPolicy, info: EnvInfo, camera_size: int | None) -> int:
    """Side of the images; 0: none are needed."""
    if not policy.cameras:
        if camera_size is not None:
            raise ChunkRLError(
                "--camera-size is for policies with a camera, and this one has none: leave it out"
            )
        return 0
    if policy.own_image_size is not None:
        return camera_size or info.public_camera_size or policy.own_image_size
    seen, recorded = _side(policy.image_sizes), _side([s for sizes in policy.recorded_sizes for s in sizes])
    told = " and ".join(f"{height} x {width}" for height, width in policy.image_sizes)
    if seen is None and policy.image_sizes:
        raise ChunkRLError(
            f"the policy was trained on images of {told} pixels, and {info.kind} draws squares of one size: train "
            "with --resize SIDE SIDE"
        )
    if camera_size and policy.image_sizes and camera_size not in (seen, recorded):
        raise ChunkRLError(
            f"--camera-size {camera_size}: the policy was trained on images of {told} pixels, leave it out"
        )
    if size := camera_size or recorded or seen:
        return size
    raise ChunkRLError(
        f"the policy sees {', '.join(repr(camera) for camera in policy.cameras)}: say with --camera-size how large "
        "the images of its data were, as in chunkrl collect"
    )


def _side(sizes: Sequence[tuple[int, int]]) -> int | None:
    """The side of images that are all squares of one size."""
    sides = {side for size in sizes for side in size}
    return sides.pop() if len(sides) == 1 else None


def renamed(actor: Actor, rename: Sequence[tuple[str, str]]) -> Actor:
    """`actor` on observations with an environment's camera names; cameras that it does not take are left out."""

    def act(observation: Observation, generators: Sequence[torch.Generator]) -> Tensor:
        images: Mapping[str, Tensor] = {theirs: observation.images[ours] for ours, theirs in rename}
        return actor(replace(observation, images=images), generators)

    return act


def plan_episodes(settings: EvaluationSettings, num_initial_states: int | None) -> list[Episode]:
    """Every task's episodes, task by task; equal settings give equal episodes for every policy.

    Raises:
        ChunkRLError: more episodes than the environment has initial states.
    """
    count = settings.num_episodes
    drawn = initial_seeds(settings.seed, count)
    if num_initial_states is None:
        return [Episode(env, seed, seed) for env in settings.envs for seed in drawn]
    if count > num_initial_states:
        raise ChunkRLError(
            f"--num-episodes {count}: {settings.envs[0]} has {num_initial_states} initial states, and an episode "
            f"from the same state twice is none more; give at most {num_initial_states}"
        )
    return [
        Episode(env, number, (noise + zlib.crc32(env.encode())) % 2**31)
        for env in settings.envs
        for number, noise in enumerate(drawn)
    ]


def make_pool(
    request: EnvRequest,
    num_workers: int | None,
    batch_size: int,
    num_episodes: int,
    hang_s: float,
    videos: bool = False,
) -> EnvPool:
    """Simulators for the request: processes, or (`num_workers` 0) as many environments in this process as a policy
    call takes; one, where a process can draw in one alone and the policy or the videos need images."""
    if num_workers == 0:
        draws = request.options.camera_size > 0 or videos
        num_slots = 1 if draws and request.info.one_context else min(batch_size, num_episodes)
        return LocalPool(num_slots, lambda slot, name: make_env(name, request.options))
    wanted = len(os.sched_getaffinity(0)) if num_workers is None else num_workers
    prepare(request.envs)
    return WorkerPool(min(wanted, num_episodes), partial(make_env, options=request.options), hang_s)
