"""Weights on their way to an actor: bfloat16, newer ones only, the old ones stay where anything is wrong."""

from typing import Any

import pytest
import torch
from torch import nn
from waiting import until

from chunkrl.errors import CheckpointError, RecordError, TransportError
from chunkrl.online.link import wire
from chunkrl.online.link.records import TensorData, WeightPush
from chunkrl.online.link.sender import SenderConfig, SpoolSender, UnreachableError
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.weights import VersionCounter, WeightFetcher, make_push, push_tensors


def parameters(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    return dict(net.named_parameters()) | {
        "scale": torch.randn((), dtype=dtype),
        "t": torch.randn(3, 2, dtype=dtype).T,
    }


def test_weights_arrive_rounded_to_bfloat16():
    sent = parameters(1)
    push = wire.decode_weights(wire.encode_weights(make_push(4, sent)))
    assert push and push.version == 4
    received = push_tensors(push)
    assert list(received) == list(sent)
    for name, values in received.items():
        assert values.dtype == torch.bfloat16
        torch.testing.assert_close(values, sent[name].detach().bfloat16(), rtol=0, atol=0)


def test_a_fetcher_hands_on_what_is_newer_and_survives_everything_else(caplog):
    """In order: no learner, nothing newer, version 2, a damaged push, one that does not fit, version 5."""
    asked, taken = [], {}
    answers: list = [UnreachableError("down"), None, 2, RecordError("damaged"), 3, 4, 5]

    def fetch(newer_than: int) -> WeightPush | None:
        asked.append(newer_than)
        answer = answers.pop(0) if answers else None
        if isinstance(answer, Exception):
            raise answer
        if answer == 3:
            return WeightPush.make(3, {"w": TensorData("float16", (1,), b"12")})
        return make_push(answer, {"w": torch.full((3,), float(answer))}) if answer else None

    def take(version: int, tensors) -> None:
        if version == 4:
            raise CheckpointError("another shape")
        taken[version] = tensors["w"].tolist()

    fetcher = WeightFetcher(fetch, take, every_s=0.001)
    until(lambda: len(asked) > 8)
    fetcher.close()
    assert taken == {2: [2.0] * 3, 5: [5.0] * 3} and fetcher.version == 5
    assert asked[:8] == [0, 0, 0, 2, 2, 3, 4, 5]  # what was refused is not fetched again
    assert fetcher.num_refused == 3 and fetcher.failure is None
    for text in ("damaged", "w is float16, expected bfloat16", "another shape"):
        assert text in caplog.text

    def refuse(newer_than: int) -> WeightPush | None:
        raise TransportError("wrong token")

    fetcher = WeightFetcher(refuse, take, every_s=0.001)
    until(lambda: fetcher.failure)
    fetcher.close()
    assert "no more weights: wrong token" in caplog.text


def test_what_nobody_thought_of_is_said_and_the_session_goes_on(tmp_path):
    def no_memory(*_):
        raise MemoryError("none left")

    fetcher = WeightFetcher(lambda _: make_push(1, {"w": torch.zeros(1)}), no_memory, every_s=0.001)
    until(lambda: fetcher.failure)
    fetcher.close()
    assert "taking weights failed: MemoryError('none left')" in str(fetcher.failure)

    class Client:
        drain = no_memory

    with Spool(tmp_path) as spool:
        sender = SpoolSender(Client(), spool)  # type: ignore[arg-type]
        until(lambda: sender.failure)
        sender.close()
    assert "sending failed: MemoryError('none left')" in str(sender.failure) and not sender.reachable


@pytest.mark.parametrize(
    ("gather_s", "waiting", "left"),
    [
        (1e9, [], 1),  # a call did not hold what was there: no waiting
        (1e9, [3, 6, 9, 9], 0),  # until none has followed
        (1e9, [3, 6, 90], 0),  # or many wait
        (1e-9, [3], 0),  # or it has lasted
        (1e9, [0], 0),  # with nothing to send, whether the learner is there is looked at all the same
    ],
)
def test_few_records_wait_for_those_that_follow(gather_s, waiting, left):
    events: list[int | str] = []
    script = iter([*waiting, *waiting])

    class Scripted:
        """An actor's spool, and the client that sends it: one call more than the script has ends the sender."""

        root, next_sequence, acknowledged = "spool", 9, 9 - left

        def drain(self):
            events.append("call")
            if events.count("call") == 3:
                raise TransportError("the end")
            return 1

        @property
        def num_waiting(self):
            events.append(next(script))
            return events[-1]

    both: Any = Scripted()
    sender = SpoolSender(both, both, SenderConfig(poll_s=1e-6, gather_s=gather_s))
    until(lambda: sender.failure)
    sender.close()
    assert events == ["call", *waiting, "call", *waiting, "call"]


def test_what_is_no_weight_is_not_pushed():
    with pytest.raises(RecordError, match="w holds NaN or inf: version 3 is not pushed"):
        make_push(3, {"w": torch.tensor([1.0, torch.inf])})
    with pytest.raises(RecordError, match=r"w is of type torch\.int64"):
        make_push(3, {"w": torch.arange(3)})
    with pytest.raises(RecordError, match="no tensors"):
        make_push(3, {})


def test_versions_rise_over_restarts(tmp_path):
    counter = VersionCounter(tmp_path / "version.json")
    assert [counter.next(), counter.next()] == [1, 2]
    assert VersionCounter(tmp_path / "version.json").next() == 3
    (tmp_path / "version.json").write_text('{"version": "x"}')
    with pytest.raises(TransportError, match="restore it"):
        VersionCounter(tmp_path / "version.json")
