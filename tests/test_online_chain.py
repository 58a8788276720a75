"""The actor's loop on a fake robot, through spool, network and intake, into a data set that the trainer reads."""

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs chunkrl[online]")

from actor_fakes import CountingSource, robot_rig
from online_peers import SMALL

from chunkrl.data import ChunkDataset, ChunkSettings
from chunkrl.envs.protocol import EnvStep
from chunkrl.online.actor.actor import Actor, ActorConfig, Human
from chunkrl.online.actor.executor import ChunkExecutor, ExecutionConfig
from chunkrl.online.actor.recorder import ItemSpool, stream_spec
from chunkrl.online.human.keys import ScriptedKeys
from chunkrl.online.learner.intake import EpisodeIntake
from chunkrl.online.learner.replay import Replay, reading
from chunkrl.online.link.config import ConnectConfig, ListenConfig, ReplayConfig
from chunkrl.online.link.records import Hello
from chunkrl.online.link.sender import LearnerClient, SpoolSender
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import SpoolReceiver
from chunkrl.progress import silent

KEYS = [
    "2",
    "",
    "",
    "",
    "1",
    "2",
    "",
    "r",
    "2",
    *" " * 6,
    "2",
    "",
    "",
    "0",
    "2",
]  # success, again, time, failure


def test_what_the_robot_did_is_what_the_trainer_reads(tmp_path):
    _, env, space, rate = robot_rig(3, max_steps=6, cameras={"front": (4, 6)})
    spec = stream_spec(env, EnvStep(np.zeros(3), {"observation.images.front": np.zeros((4, 6, 3))}))
    streams = ReceivedStreams(tmp_path / "incoming")
    receiver = SpoolReceiver(ListenConfig("127.0.0.1:0"), streams)
    receiver.start()
    with Spool(tmp_path / "spool") as spool:
        link = ConnectConfig(f"127.0.0.1:{receiver.port}")
        sender = SpoolSender(
            LearnerClient(link, Hello("arm-1", spool.spool_id, spec), spool, SMALL), spool, SMALL
        )
        summary = Actor(
            env,
            space,
            ChunkExecutor(CountingSource(4, 3, scale=0.1), ExecutionConfig(3, 1, "wait")),
            ItemSpool(spool, "arm-1", spec),
            ActorConfig(actor_id="arm-1", num_episodes=3),
            Human(ScriptedKeys(KEYS)),
            rate,
        ).run()
        assert sender.wait_sent(20), sender.failure
        sender.close()
    replay = Replay(tmp_path / "replay", spec, ReplayConfig(cameras="image"))
    intake = EpisodeIntake(streams, replay, tmp_path / "set_aside")
    stored = intake.poll()
    receiver.stop(0)
    assert [episode.success for episode in stored] == [True, False, False]
    assert (intake.num_stored, intake.num_discarded, intake.num_set_aside) == (3, summary.num_discarded, 0)
    with reading(tmp_path / "replay") as (folder,):
        data = ChunkDataset(folder, ChunkSettings(2), cache_dir=tmp_path / "cache", progress=silent)
    replay.close()
    streams.close()
    assert data.table.num_episodes == 3 and data.table.num_frames == replay.num_steps == sum(
        e.num_steps for e in stored
    )
    last = data.table.episode_start + data.table.episode_length - 1
    np.testing.assert_array_equal(data.table.column("next.success").ravel()[last], [True, False, False])
    np.testing.assert_array_equal(data.table.column("next.terminated").ravel()[last], [True, False, True])
    np.testing.assert_array_equal(data.table.column("next.truncated").ravel()[last], [False, True, False])
    # the fake robot goes where it is sent: the state after a step is that step's action
    first = data.table.episode_start
    inner = np.setdiff1d(np.arange(data.table.num_frames), first)
    assert data.table.state is not None
    np.testing.assert_allclose(data.table.state[inner], data.table.action[inner - 1], atol=1e-6)
