"""Records for the tests of `chunkrl.online`, each a function of its arguments; and a disk that gets full."""

import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from chunkrl.online.link.records import EpisodeSummary, Item, Outcome, StepRecord, StreamSpec

SPEC = StreamSpec(10.0, ("x", "y", "z"), ("dx", "grip"), {"front": (8, 12)}, "fake")


def episode_id(number: int) -> str:
    """A UUID that is a function of `number`."""
    return str(uuid.UUID(int=number, version=4))


def step(episode: int, index: int, actor: str = "arm", **changes: Any) -> StepRecord:
    """Step `index` of episode `episode`."""
    rng = np.random.default_rng([episode, index])
    executed = rng.normal(size=2).astype(np.float32)
    fields: dict[str, Any] = {
        **{"actor_id": actor, "episode_id": episode_id(episode), "step_index": index, "task": "push"},
        "state": rng.normal(size=3).astype(np.float32),
        "images": {"front": rng.integers(0, 256, (8, 12, 3), np.uint8)},
        **{"proposed_action": executed + 1, "executed_action": executed, "human": index % 3 == 1},
        **{"policy_version": index // 2, "reward": float(index), "success": False},
        **{"terminated": False, "truncated": False, "held": index == 0},
    }
    return StepRecord(**fields | changes)


def episode(number: int, length: int, outcome: Outcome = "success", actor: str = "arm") -> list[Item]:
    """All items of one episode: `length` steps and its summary."""
    ended = {"success": outcome == "success", "terminated": outcome in ("success", "failure")}
    ended["truncated"] = not ended["terminated"]
    steps = [step(number, i, actor, **(ended if i == length - 1 else {})) for i in range(length)]
    total = float(sum(s.reward for s in steps))
    return [*steps, EpisodeSummary(actor, episode_id(number), length, outcome, total, 1)]


def same(a: object, b: object) -> bool:
    """Whether two items are equal in every field."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, StepRecord | EpisodeSummary):
        return type(a) is type(b) and all(same(value, getattr(b, name)) for name, value in vars(a).items())
    return type(a) is type(b) and a == b


@contextmanager
def full_disk(file_bytes: int) -> Iterator[None]:
    """Inside, no file of this process grows beyond so many bytes: the kernel writes a part, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
