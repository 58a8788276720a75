"""An actor whose steps a learner cannot store or train on is refused when it greets, and leaves no trace."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

import test_learner_start
from actor_fakes import small_policy
from growing_data import HORIZON, settings
from online_peers import SMALL
from online_records import SPEC, episode, episode_id
from started import free_address
from test_online_faults import stored_episodes
from test_online_learner import TestActor, learner_arguments
from waiting import until

from chunkrl.cli import main
from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.data.action_encoding import ActionEncoding
from chunkrl.data.chunk_settings import ColumnMapping, FrameSettings
from chunkrl.data.hold_action import HoldAction
from chunkrl.errors import DatasetError, SpoolError, TransportError
from chunkrl.online.learner.data import LearnerData, replay_settings
from chunkrl.online.learner.fit import FitsLearner, initial_policy
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.config import ConnectConfig, ReplayConfig
from chunkrl.online.link.records import Hello, StepRecord, StreamSpec
from chunkrl.online.link.sender import LearnerClient, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import STREAM_FILE, ReceivedStreams
from chunkrl.online.link.transport import _status_text
from chunkrl.progress import silent

recorded = test_learner_start.recorded

FRONT = "observation.images.front"
TWO = {"front": (8, 12), "wrist": (8, 12)}
LEAVE_OUT = f"leave wrist out of the robot's file, or begin a learner with --cameras {FRONT}"
SMALLER = FrameSettings(resize=(4, 6))


def store(root: Path, spec: StreamSpec, numbers: range) -> Replay:
    """A replay with episodes of `spec`."""
    replay = Replay(root, spec, ReplayConfig(cameras="image"))
    for number in numbers:
        steps = [item for item in episode(number, 6) if isinstance(item, StepRecord)]
        replay.add([
            replace(
                step,
                state=np.zeros(len(spec.state_names), np.float32),
                proposed_action=np.zeros(len(spec.action_names), np.float32),
                executed_action=np.zeros(len(spec.action_names), np.float32),
                images={name: np.zeros((*size, 3), np.uint8) for name, size in spec.cameras.items()},
            )
            for step in steps
        ])  # fmt: skip
    return replay


@pytest.mark.parametrize(
    ("changes", "given", "share", "told"),
    [
        ({}, {}, 0.5, ""),
        ({"cameras": TWO}, {}, 0.5, LEAVE_OUT),
        ({"cameras": TWO}, {"cameras": (FRONT,)}, 0.5, ""),
        ({"cameras": TWO}, {"cameras": ()}, 0.5, ""),
        ({"cameras": {}}, {"cameras": ()}, 0.5, ""),
        ({"cameras": {}}, {}, 0.5, "name a camera front in the robot's file"),
        ({"cameras": {"wrist": (8, 12)}}, {"cameras": (FRONT,)}, 0.5, "name a camera front in the robot's file"),
        ({"cameras": {"front": (16, 12)}}, {}, 0.5, "record 8 x 12 (height and width in the robot's file"),
        ({"cameras": {"front": (16, 12)}}, {"frames": SMALLER}, 0.5, ""),
        ({"fps": 20.0}, {}, 0.5, 'give the robot\'s file "rate_hz": 10, or begin a learner with data of 20 fr'),
        ({"state_names": ("x", "y")}, {}, 0.5, "that is another robot"),
        ({"action_names": ("dx", "dy", "grip")}, {}, 0.5, "values an action: 3, but"),
        ({"action_names": ("grip", "dx")}, {}, 0.5, "'grip' stands at another place"),
        ({"state_names": ("a", "b", "c")}, {}, 0.5, ""),
        ({}, {"mapping": ColumnMapping(state_key=())}, 0.5, "whose --state-key names the state of its data"),
        # only the replay is drawn from: its rate, and cameras that no network reads, are its own
        ({"cameras": TWO, "fps": 20.0}, {}, 1.0, ""),
    ],
)  # fmt: skip
def test_what_is_refused_is_what_could_not_be_trained_on(tmp_path, changes, given, share, told):
    store(tmp_path / "first", SPEC, range(100, 103)).close()
    chunks = ChunkSettings(HORIZON, **given)
    offline = ChunkDataset(
        tmp_path / "first/shard-000000", chunks, cache_dir=tmp_path / "cache", progress=silent
    )
    of_shards, spec = replay_settings(chunks), replace(SPEC, **changes)
    fits = FitsLearner([offline], of_shards, None, "image", share)
    data = LearnerData([offline], (), of_shards, tmp_path / "shards", share)
    replay = store(tmp_path / "replay", spec, range(3))
    if not told:
        fits("actor arm", spec)
        assert data.open(replay).online_episodes == 3
    else:
        with pytest.raises(DatasetError) as refused:
            fits("actor arm", spec)
        assert str(refused.value).startswith("actor arm: ") and told in str(refused.value)
        with pytest.raises(DatasetError):
            data.open(replay)
    replay.close()


@pytest.mark.parametrize(
    ("spec", "given", "action_dim", "pictures", "told"),
    [
        (SPEC, {}, 3, "image", "begin one with --action-dim 2, or without"),
        (SPEC, {"cameras": (FRONT, "observation.images.wrist")}, None, "image", "name a camera wrist in the robot's"),
        (SPEC, {"cameras": ("observation.image",)}, None, "image", "rename observation.image in the learner's data"),
        (SPEC, {"hold": HoldAction(gripper_dims=(5,))}, None, "image", "names [5], but actions have 2 values"),
        (SPEC, {"encoding": ActionEncoding("delta", action_dims=(0, 4)), "hold": HoldAction("absolute")}, None,
         "image", "name different ones of the 2 values"),
        (replace(SPEC, cameras={"front": (7, 11)}), {}, None, "video", "use --replay.cameras image"),
        (replace(SPEC, fps=33.33333), {}, None, "video", "a ratio such as 30"),
        (replace(SPEC, cameras={"front": (7, 11)}, fps=33.33333), {}, 2, "image", ""),
    ],
)  # fmt: skip
def test_without_data_the_settings_say_what_is_refused(spec, given, action_dim, pictures, told):
    fits = FitsLearner((), settings(**given), action_dim, pictures, 1.0)
    if not told:
        fits("actor arm", spec)
        return
    with pytest.raises(DatasetError) as refused:
        fits("actor arm", spec)
    assert str(refused.value).startswith("actor arm: ") and told in str(refused.value)


def test_without_data_the_policy_that_a_learner_begins_with_says_it(tmp_path):
    cameras = (FRONT,)
    small_policy(0, 3, 2, cameras).save(tmp_path / "run/policy")
    (tmp_path / "run/checkpoints/0000010").mkdir(parents=True)
    assert initial_policy(tmp_path) is None
    for init in ("run", "run/policy", "run/checkpoints/0000010"):
        initial = initial_policy(tmp_path / init)
        assert initial is not None and initial.cameras == cameras
        fits = FitsLearner((), settings(), None, "image", 1.0, initial)
        fits("actor arm", SPEC)
        with pytest.raises(DatasetError, match=f"leave wrist out .* with --cameras {FRONT}"):
            fits("actor arm", replace(SPEC, cameras=TWO))
        replace(fits, settings=settings(cameras=cameras))("actor arm", replace(SPEC, cameras=TWO))
        with pytest.raises(
            DatasetError, match="3 values an action and 3 per state, but the policy of --init"
        ):
            fits("actor arm", replace(SPEC, action_names=("a", "b", "c")))


def refuse_wide(name: str, spec: StreamSpec) -> None:
    if len(spec.cameras) > 1:
        raise DatasetError(f"{name}: too many cameras: leave one out")


def test_a_refused_actor_leaves_no_trace_and_one_that_fits_is_let_in(tmp_path):
    streams = ReceivedStreams(tmp_path)
    streams.require(refuse_wide)
    with pytest.raises(TransportError, match="actor arm: too many cameras: leave one out"):
        streams.greet(Hello("arm", episode_id(1), replace(SPEC, cameras=TWO)))
    assert streams.spec is None and streams.actors == () and not (tmp_path / STREAM_FILE).exists()
    assert streams.greet(Hello("arm", episode_id(1), SPEC)) == 0
    streams.close()


def test_what_came_before_and_does_not_fit_is_said_at_the_start(tmp_path):
    streams = ReceivedStreams(tmp_path)
    streams.greet(Hello("arm", episode_id(1), replace(SPEC, cameras=TWO)))
    with pytest.raises(
        SpoolError, match=rf"{STREAM_FILE} describes: too many .* begin a learner in a new folder"
    ):
        streams.require(refuse_wide)
    streams.close()


def test_the_end_of_a_long_refusal_the_cure_arrives():
    text = _status_text(TransportError("who it is" + ", a joint" * 300 + ": what to do"))
    assert len(text) <= 1000 and text.startswith("who it is") and text.endswith("what to do")


def test_a_learner_refuses_what_its_data_do_not_have_before_an_episode_is_recorded(tmp_path, recorded):
    run, address = tmp_path / "run", free_address()
    arguments = learner_arguments(run, address, "--dataset-dir", str(recorded), "--num-updates", "20")
    arguments += ["--online.updates-per-step", "1", "--online.start-episodes", "2"]
    thread = threading.Thread(target=main, args=(arguments,), daemon=True)
    thread.start()

    def refusal(spec: StreamSpec) -> str:
        with Spool(tmp_path / "refused") as spool:
            client = LearnerClient(ConnectConfig(address), Hello("arm", spool.spool_id, spec), spool, SMALL)

            def told() -> str | None:
                try:
                    client.greet()
                    return "let in"
                except UnreachableError:
                    return None
                except TransportError as error:
                    return str(error)

            try:
                found = until(told)
            finally:
                client.close()
        assert found is not None
        return found

    assert f"begin a learner with --cameras {FRONT}" in refusal(replace(SPEC, cameras=TWO))
    assert '"rate_hz": 10' in refusal(replace(SPEC, fps=20.0))
    assert not (run / "replay/incoming" / STREAM_FILE).exists()
    actor = TestActor(tmp_path / "spool", address)  # one that fits is let in, and trained on
    try:
        actor.record(range(4))
        until(lambda: not thread.is_alive())
    finally:
        actor.close()
    assert sum(stored_episodes(run / "replay").values()) >= 20
