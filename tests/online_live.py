"""Whole actor and learner processes for `test_online_faults.py`; both run until they are killed or told to end.

python online_live.py learner ROOT ADDRESS SECRETS: receives, stores, offers weights.
python online_live.py actor ROOT ADDRESS SECRETS EPISODES: records episodes with new ids, sends them, fetches
weights; prints "finished ID" after each, and "sent" when all is confirmed.

SECRETS: folder with token, learner.key and learner.pem; "-" for none.
"""

import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from online_peers import SMALL
from online_records import SPEC, step

from chunkrl.errors import ChunkRLError, SpoolError
from chunkrl.online.actor.recorder import ItemSpool
from chunkrl.online.learner.intake import EpisodeIntake
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.config import ConnectConfig, ListenConfig, ReplayConfig
from chunkrl.online.link.records import EpisodeSummary, Hello, Item, TensorData, WeightPush, new_id
from chunkrl.online.link.sender import LearnerClient, SpoolSender, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import ReceiverLimits, SpoolReceiver
from chunkrl.online.link.weights import VersionCounter

SHARDS = ReplayConfig(shard_episodes=10, cameras="image")


def length(identity: str) -> int:
    """Steps of an episode, known from its id."""
    return 3 + int(identity[0], 16)


def weights(version: int) -> WeightPush:
    """Recognisable by their version."""
    values = np.full(1000, version, np.float32)
    return WeightPush.make(version, {"w": TensorData("float32", (1000,), values.tobytes())})


def learn(root: Path, address: str, secrets: Path | None) -> None:
    """Until killed; a new version of the weights every poll."""
    names = {"token_file": "token", "tls_certificate": "learner.pem", "tls_key": "learner.key"}
    files = {key: str(secrets / name) for key, name in names.items()} if secrets else {}
    streams = ReceivedStreams(root / "incoming", segment_bytes=20_000)
    receiver = SpoolReceiver(ListenConfig(address, **files), streams, ReceiverLimits(8, 5.0))
    versions = VersionCounter(root / "version.json")
    replay = Replay(root / "replay", SPEC, SHARDS)
    intake = EpisodeIntake(streams, replay, root / "set_aside")
    receiver.start()
    print("begun", flush=True)
    while True:
        with contextlib.suppress(ChunkRLError):  # the disk is full at the moment
            intake.poll()
            receiver.offer(weights(versions.next()))
        time.sleep(0.02)


def keep(sink: ItemSpool, item: Item) -> None:
    """Until there is room."""
    while True:
        with contextlib.suppress(SpoolError):
            sink.append(item)
            return
        time.sleep(0.02)


def act(root: Path, address: str, secrets: Path | None, num_episodes: int) -> None:
    """As the actor's loop does, with no robot."""
    names = {"token_file": "token", "tls_authority": "learner.pem"}
    link = ConnectConfig(
        address, **({key: str(secrets / name) for key, name in names.items()} if secrets else {})
    )
    config = replace(SMALL, keepalive_s=1.0)
    with Spool(root, segment_bytes=20_000, sync_interval_s=0.05) as spool:
        hello = Hello("arm", spool.spool_id, SPEC)
        sender = SpoolSender(LearnerClient(link, hello, spool, config), spool, config)
        fetcher = LearnerClient(link, hello, spool, config)
        sink, version = ItemSpool(spool, "arm", SPEC), 0
        print("begun", flush=True)
        for _ in range(num_episodes):
            identity = new_id()
            for i in range(count := length(identity)):
                last = i == count - 1
                keep(
                    sink,
                    step(0, i, episode_id=identity, policy_version=version, success=last, terminated=last),
                )
                time.sleep(0.002)
            keep(sink, EpisodeSummary("arm", identity, count, "success", float(sum(range(count)))))
            print("finished", identity, flush=True)
            with contextlib.suppress(UnreachableError):  # the learner is dead at the moment
                if push := fetcher.fetch_weights(version):
                    assert push == weights(push.version)
                    version = push.version
        assert sender.wait_sent(90), sender.failure
        sender.close()
    print("sent", flush=True)


if __name__ == "__main__":
    folder = None if sys.argv[4] == "-" else Path(sys.argv[4])
    if sys.argv[1] == "learner":
        learn(Path(sys.argv[2]), sys.argv[3], folder)
    else:
        act(Path(sys.argv[2]), sys.argv[3], folder, int(sys.argv[5]))
