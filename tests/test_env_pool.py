"""Simulator processes: equal results for any number of them, and after crashes, hangs and exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from env_fakes import CountEnv, LargeServant
from waiting import until

from chunkrl.envs.pool import EnvPool, LocalPool
from chunkrl.envs.protocol import EnvStep
from chunkrl.envs.workers import Lost, WorkerPool, Workers
from chunkrl.errors import ChunkRLError
from chunkrl.evaluation.rollout import Episode, EpisodeResult, RolloutConfig, run_episodes
from chunkrl.types import Observation


def noise_actor(observation: Observation, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Chunks [B, 4, 1] of uniform noise of each row's generator: what an episode does depends on its noise alone."""
    assert observation.state is not None and len(generators) == len(observation.state)
    return torch.stack([torch.rand(4, 1, generator=generator) for generator in generators]) * 0.5


EPISODES = [Episode(name, seed, 10 * seed + len(name)) for name in ("a", "bb") for seed in range(4)]


def expected(episode: Episode, exec_steps: int = 3) -> tuple[bool, int]:
    """The episode in closed form: uniform draws are summed, `exec_steps` of each chunk of 4."""
    generator = torch.Generator().manual_seed(episode.noise_seed)
    total, num_steps = 0.0, 0
    while num_steps < CountEnv.max_steps:
        for action in (torch.rand(4, 1, generator=generator) * 0.5)[:exec_steps, 0].tolist():
            total, num_steps = total + action, num_steps + 1
            if total > 1 or num_steps == CountEnv.max_steps:
                return total > 1, num_steps
    raise AssertionError


def run(pool: EnvPool, batch_size: int = 2, record_every: int = 0) -> dict[int, EpisodeResult]:
    found: dict[int, EpisodeResult] = {}
    with closing(pool):
        execution = RolloutConfig(3, batch_size)
        run_episodes(noise_actor, pool, EPISODES, execution, found.__setitem__, record_every)
    return found


def check(found: dict[int, EpisodeResult]) -> None:
    assert sorted(found) == list(range(len(EPISODES)))
    assert [(found[i].success, found[i].num_steps) for i in sorted(found)] == [expected(e) for e in EPISODES]


def test_episodes_in_closed_form_for_any_number_of_slots() -> None:
    for num_slots, batch_size in ((1, 1), (3, 2), (8, 4), (2, 8)):
        check(run(LocalPool(num_slots, lambda slot, name: CountEnv(name)), batch_size))


def test_pictures_of_the_first_every_second_and_the_last_step() -> None:
    found = run(LocalPool(2, lambda slot, name: CountEnv(name)), record_every=2)
    for result in found.values():
        assert result.frames is not None
        shown = result.frames[:, 0, 0, 0].tolist()
        assert shown == sorted({*range(0, result.num_steps + 1, 2), result.num_steps})


def test_a_batch_is_always_full_and_its_filling_changes_nothing() -> None:
    sizes: list[int] = []

    def actor(observation, generators):
        sizes.append(observation.batch_size)
        return noise_actor(observation, generators)

    found: dict[int, EpisodeResult] = {}
    pool = LocalPool(3, lambda slot, name: CountEnv(name))
    run_episodes(actor, pool, EPISODES, RolloutConfig(3, 4), found.__setitem__)
    assert set(sizes) == {4}
    check(found)


@pytest.mark.parametrize(
    "fault", ["kill", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("hang", "raise"))]
)
def test_a_simulator_that_is_lost_costs_its_episode_alone(fault: str, tmp_path: Path) -> None:
    make = partial(CountEnv, fault=fault, marker=tmp_path / "happened")
    pool = WorkerPool(2, make, hang_s=15.0 if fault == "hang" else 60.0)
    found = run(pool)
    check(found)
    assert pool.num_restarts == 1
    assert sorted(result.num_restarts for result in found.values()) == [0] * 7 + [1]
    assert found[2].num_restarts + found[6].num_restarts == 1  # the two with seed 2


@pytest.mark.slow
def test_a_process_that_stops_in_the_middle_of_its_answer_is_lost() -> None:
    workers = Workers(1, LargeServant, hang_s=15.0)
    with closing(workers):
        workers.order(0, "make", 10**8)
        (worker,) = (w for w in workers._workers if w is not None)
        assert worker.connection.poll(15)  # it has begun, and cannot end before we read
        assert worker.process.pid is not None
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert workers.answers() == [(0, Lost("its process did not answer for 15 s"))]
        workers.order(0, "make", 10**8)
        ((slot, answer),) = workers.answers()
        assert (slot, len(answer), workers.num_restarts) == (0, 10**8, 1)


def test_an_answer_that_waited_for_a_slow_parent_counts() -> None:
    workers = Workers(1, LargeServant, hang_s=15.0)
    with closing(workers):
        workers.order(0, "make", 10**7)
        (worker,) = (w for w in workers._workers if w is not None)
        assert worker.connection.poll(15)
        worker.deadline = time.monotonic() - 1.0  # we were busy elsewhere
        ((slot, answer),) = workers.answers()
        assert (slot, len(answer), workers.num_restarts) == (0, 10**7, 0)
        workers.order(0, "make", 5)
        assert workers.answers() == [(0, bytes(5))]


def test_what_happens_every_time_is_an_error_with_its_cause() -> None:
    with pytest.raises(ChunkRLError, match=r"(?s)from initial state 2.*lost 3 times.*signal SIGKILL"):
        run(WorkerPool(1, partial(CountEnv, fault="kill")))


@pytest.mark.parametrize("in_processes", [False, True])
def test_a_policy_that_gives_nan_is_told_and_no_simulator_is_lost(in_processes: bool) -> None:
    def poisoned(observation: Observation, generators: Sequence[torch.Generator]) -> torch.Tensor:
        assert observation.state is not None
        chunks = noise_actor(observation, generators)
        chunks[observation.state[:, 2] > 0, 3] = (
            torch.nan
        )  # from the second chunk on, beyond what is executed
        return chunks

    pool = WorkerPool(1, CountEnv) if in_processes else LocalPool(1, lambda slot, name: CountEnv(name))
    told = "^a from initial state 1, after 3 steps: the policy gives actions that are NaN or infinite: its weights"
    with closing(pool), pytest.raises(ChunkRLError, match=told):
        run_episodes(poisoned, pool, EPISODES[1:], RolloutConfig(3, 1), lambda number, result: None)
    assert pool.num_restarts == 0


def test_a_simulation_that_diverged_is_not_the_policys_fault() -> None:
    class Diverged(CountEnv):
        def _step(self, **more):
            return EnvStep(np.full(3, np.nan, dtype=np.float32), **more)

    pool = LocalPool(1, lambda slot, name: Diverged(name))
    actor = lambda observation, generators: observation.state[:, None, :1].expand(-1, 3, -1)  # noqa: E731
    with pytest.raises(
        ChunkRLError, match=r"after 0 steps: the state that the policy is given .* simulation diverged"
    ):
        run_episodes(actor, pool, EPISODES, RolloutConfig(3, 1), lambda number, result: None)


def test_an_environment_that_cannot_be_made_is_the_users_to_cure() -> None:
    with pytest.raises(ChunkRLError, match=r"^no environment a: name another$"):
        run(WorkerPool(2, partial(CountEnv, fault="refuse")))


def test_no_process_is_left_behind_and_none_starts_for_nothing() -> None:
    import multiprocessing

    pool = WorkerPool(2, CountEnv)
    assert pool.wait() == [] and not multiprocessing.active_children()
    pool.reset(0, "a", 1)
    (report,) = pool.wait()
    assert (
        report.step is not None
        and np.array_equal(report.step.state, [1, 0, 0])
        and report.task == CountEnv.task
    )
    pool.execute(0, np.ones((4, 1)))
    (report,) = pool.wait()
    assert report.step is not None and report.step.success and report.num_steps == 2  # 1 is not above 1
    pool.close()
    assert not multiprocessing.active_children()


_PARENT = """
import multiprocessing, numpy as np
from functools import partial
from env_fakes import CountEnv
from chunkrl.envs.workers import WorkerPool
if __name__ == "__main__":
    pool = WorkerPool(2, partial(CountEnv, fault="hang"))
    for slot in range(2):
        pool.reset(slot, "a", 2)
    for _ in range(2):
        pool.wait()
    pool.execute(0, np.zeros((4, 1)))  # hangs; the other one waits for orders
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    pool.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_their_parent_however_it_ends(sent: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2 and all(_runs(pid) for pid in children)
    parent.send_signal(sent)
    parent.wait(30)
    until(lambda: not any(_runs(pid) for pid in children))


def _runs(pid: int) -> bool:
    """Whether a process is there and no mere entry that nobody has collected."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
