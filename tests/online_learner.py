"""Run by `test_online_replay.py`: python online_learner.py ROOT EPISODES receives and stores until it is killed."""

import sys
from pathlib import Path

from online_records import SPEC, episode, episode_id

from chunkrl.online.learner.intake import EpisodeIntake
from chunkrl.online.learner.replay import Replay
from chunkrl.online.link.config import ReplayConfig
from chunkrl.online.link.records import Hello, Item
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.wire import Batch, encode_item

CONFIG = ReplayConfig(shard_episodes=4, cameras="image")


def length(number: int) -> int:
    """Steps of episode `number`."""
    return 3 + number % 4


def items(num_episodes: int) -> list[Item]:
    """All items of an actor's spool with so many episodes; every fifth one is discarded."""
    return [
        item
        for number in range(num_episodes)
        for item in episode(number, length(number), "discarded" if number % 5 == 4 else "success")
    ]


def main(root: Path, num_episodes: int) -> None:
    """Three items a message, as from the network."""
    streams = ReceivedStreams(root / "incoming", segment_bytes=5000)
    next_sequence = streams.greet(Hello("arm", episode_id(99), SPEC))
    replay = Replay(root / "replay", SPEC, CONFIG)
    intake = EpisodeIntake(streams, replay, root / "set_aside")
    print("begun", flush=True)
    intake.poll()
    encoded = [encode_item(item) for item in items(num_episodes)]
    while next_sequence < len(encoded):
        part = encoded[next_sequence : next_sequence + 3]
        next_sequence = streams.append(Batch("arm", episode_id(99), 1, next_sequence, part))
        intake.poll()
    replay.close()
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
