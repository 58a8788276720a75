"""Records on the wire: what goes in comes out, and no bytes do anything but decode or raise RecordError."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from online_records import SPEC, episode, episode_id, same, step

from chunkrl.errors import RecordError
from chunkrl.online.link import wire
from chunkrl.online.link.images import pack_item
from chunkrl.online.link.records import ITEM_SIZES, EpisodeSummary, Hello, TensorData, WeightPush, Welcome
from chunkrl.online.proto import online_pb2 as pb

NUMPY_TYPES = [name for name in ITEM_SIZES if name != "bfloat16"]
HELLO = Hello("arm", episode_id(7), SPEC, features=("weights",))
PUSH = WeightPush.make(
    3,
    {
        "a.weight": TensorData("bfloat16", (2, 3), bytes(range(12))),
        "scale": TensorData("float32", (), np.float32(2).tobytes()),
        "none": TensorData("int8", (0, 4), b""),
    },
)
SMOOTH = np.full((8, 12, 3), 7, np.uint8)
DECODERS = {
    "item": (wire.decode_item, wire.encode_item(step(1, 2))),
    "packed": (wire.decode_item, pack_item(wire.encode_item(step(1, 2, images={"front": SMOOTH})))),
    "summary": (wire.decode_item, wire.encode_item(episode(1, 2)[-1])),
    "hello": (wire.decode_hello, wire.encode_hello(HELLO)),
    "welcome": (wire.decode_welcome, wire.encode_welcome(Welcome(1, 5, 2, ("weights",)))),
    "batch": (wire.decode_batch, wire.encode_batch(wire.Batch("arm", episode_id(7), 1, 4, (b"x", b"")))),
    "acknowledgement": (wire.decode_acknowledgement, wire.encode_acknowledgement(9)),
    "request": (wire.decode_weight_request, wire.encode_weight_request(wire.WeightRequest("arm", 1, 3))),
    "weights": (lambda data: wire.decode_weights([data]), next(iter(wire.encode_weights(PUSH)))),
}


@given(st.data())
@settings(max_examples=80)
def test_tensors_round_trip(data):
    dtype = data.draw(st.sampled_from(NUMPY_TYPES))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3))
    array = data.draw(hnp.arrays(np.dtype(dtype), shape))
    view = array.T if data.draw(st.booleans()) else array
    message = pb.Tensor()
    wire._put_tensor(wire.tensor_from_numpy(view), message)
    again = pb.Tensor.FromString(message.SerializeToString())
    result = wire.tensor_to_numpy(wire._get_tensor(again))
    assert result.dtype == view.dtype and result.shape == view.shape
    assert result.tobytes() == view.tobytes()  # bits, NaN included


def test_items_round_trip():
    for item in [
        *episode(1, 4),
        *episode(2, 1, "discarded"),
        replace(step(3, 0), images={}, task="pêche 桃"),
    ]:
        assert same(wire.decode_item(wire.encode_item(item)), item)
    assert not same(step(1, 1), step(1, 2))


def test_messages_round_trip():
    assert wire.decode_hello(wire.encode_hello(HELLO)) == HELLO
    welcome = Welcome(1, 2**62, 4, ("weights",))
    assert wire.decode_welcome(wire.encode_welcome(welcome)) == welcome
    batch = wire.Batch("arm", episode_id(7), 1, 4, (b"x", b""))
    assert wire.decode_batch(wire.encode_batch(batch)) == batch
    assert wire.decode_acknowledgement(wire.encode_acknowledgement(2**62)) == 2**62
    request = wire.WeightRequest("arm", 1, 3)
    assert wire.decode_weight_request(wire.encode_weight_request(request)) == request


@pytest.mark.parametrize("name", DECODERS)
@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_no_bytes_do_anything_but_decode_or_raise_one_error(name, data):
    decode, good = DECODERS[name]
    decode_or_refuse(decode, data.draw(st.binary(max_size=200)))
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
        if kind == "change":
            damaged[place] = data.draw(st.integers(0, 255))
        elif kind == "cut" and len(damaged) > 1:
            del damaged[place : place + data.draw(st.integers(1, len(damaged) - 1))]
        else:
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        if not damaged:
            break
    decode_or_refuse(decode, bytes(damaged))


def decode_or_refuse(decode, data):
    """Fails the test on any other exception."""
    try:
        decode(data)
    except RecordError as error:
        assert str(error)


def refused(message: pb.Item, text: str) -> None:
    with pytest.raises(RecordError, match=text):
        wire.decode_item(message.SerializeToString())


def test_wrong_items_are_refused_each_with_its_reason():
    def damaged() -> pb.Item:
        return pb.Item.FromString(wire.encode_item(step(1, 2)))

    refused(pb.Item(), "neither a step")
    item = damaged()
    item.step.state.shape[0] = 2
    refused(item, "tensor float32 .2. with 12 bytes, expected 8")
    item = damaged()
    item.step.state.dtype = 77  # type: ignore[assignment]
    refused(item, "unknown type 77")
    item = damaged()
    item.step.state.dtype = pb.DType.Value("INT32")  # type: ignore[assignment]
    refused(item, "state: int32")
    item = damaged()
    item.step.state.data = np.array([1, np.nan, 1], np.float32).tobytes()
    refused(item, "state: NaN or inf at 1")
    item = damaged()
    item.step.state.shape[:] = [0, 2**62]
    item.step.state.data = b""
    refused(item, "too large")
    item = damaged()
    item.step.cameras.add().CopyFrom(item.step.cameras[0])
    refused(item, "camera that is there twice")
    item = damaged()
    item.step.success = True
    refused(item, "success without terminated")
    item = damaged()
    item.step.actor_id = "../other"
    refused(item, "actor_id '../other': use 1 to 64")
    item = damaged()
    item.step.episode_id = "7"
    refused(item, "episode_id '7'")
    item = damaged()
    item.step.step_index = 2**63
    refused(item, "step_index 9223372036854775808")


def test_a_message_beyond_the_limit_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 100)
    with pytest.raises(RecordError, match="more than 100"):
        wire.decode_item(wire.encode_item(step(1, 1)))


def test_bool_tensors_hold_0_and_1_only():
    with pytest.raises(RecordError, match="other than 0 and 1"):
        wire.tensor_to_numpy(TensorData("bool", (2,), b"\x01\x02"))
    with pytest.raises(RecordError, match="bfloat16"):
        wire.tensor_to_numpy(PUSH.tensors["a.weight"])
    with pytest.raises(RecordError, match="complex64"):
        wire.tensor_from_numpy(np.zeros(2, np.complex64))


def test_weights_round_trip_in_pieces(monkeypatch):
    monkeypatch.setattr(wire, "WEIGHT_CHUNK_BYTES", 5)
    messages = list(wire.encode_weights(PUSH))
    assert len(messages) == 1 + 3 + 1  # head, 12 bytes in fives, 4 bytes
    assert wire.decode_weights(iter(messages)) == PUSH
    assert wire.decode_weights([]) is None
    assert PUSH.own_steps is None  # as of a learner of before
    counted = WeightPush.make(3, PUSH.tensors, num_steps=5)
    assert wire.decode_weights(wire.encode_weights(counted, 5)) == replace(counted, own_steps=5)
    with pytest.raises(RecordError, match="6 steps of one actor among 5"):
        wire.decode_weights(wire.encode_weights(counted, 6))


def test_damaged_weights_are_refused(monkeypatch):
    monkeypatch.setattr(wire, "WEIGHT_CHUNK_BYTES", 5)
    messages = list(wire.encode_weights(PUSH))
    bad = pb.WeightChunk.FromString(messages[1])
    bad.data = b"\xff" + bad.data[1:]
    cases = {
        "checksum": [messages[0], bad.SerializeToString(), *messages[2:]],
        "cut off after 12 of 16": messages[:-1],
        "more than the 16": [*messages, messages[-1]],
        "without a head": messages[1:],
        "second head": [messages[0], *messages],
    }
    for text, parts in cases.items():
        with pytest.raises(RecordError, match=text):
            wire.decode_weights(parts)
    with pytest.raises(RecordError, match="16 bytes, more than the 15 allowed"):
        wire.decode_weights(messages, max_bytes=15)
    with pytest.raises(RecordError, match="damaged on the way"):
        replace(PUSH, version=4)


def test_records_refuse_what_cannot_be():
    end = EpisodeSummary("arm", episode_id(1), 2, "success", 1.0)
    for changes, text in [
        ({"num_steps": -1}, "num_steps -1"),
        ({"outcome": "won"}, "outcome 'won': use one of success, failure"),
        ({"num_steps": 0}, "only be 'discarded'"),
        ({"total_reward": float("nan")}, "total_reward nan"),
    ]:
        with pytest.raises(RecordError, match=text):
            replace(end, **changes)
    good = step(1, 1)
    for changes, text in [
        ({"executed_action": np.zeros(3, np.float32)}, "give both the robot's dimensions"),
        ({"state": np.zeros(3)}, "state: float64"),
        ({"reward": 1}, "reward 1: a finite float"),
        ({"human": 1}, "human 1: True or False"),
        ({"terminated": True, "truncated": True}, "set one"),
        ({"images": {"front": np.zeros((8, 12), np.uint8)}}, "camera 'front'"),
        ({"images": {"a/b": np.zeros((8, 12, 3), np.uint8)}}, "camera 'a/b'"),
        ({"task": " "}, "task: a text"),
    ]:
        with pytest.raises(RecordError, match=text):
            replace(good, **changes)
    with pytest.raises(RecordError, match="state 3, but the stream has 2"):
        replace(SPEC, state_names=("x", "y")).check(good)
    with pytest.raises(RecordError, match="cameras"):
        replace(SPEC, cameras={}).check(good)
    SPEC.check(good)


def test_generated_code_is_that_of_the_proto_file(tmp_path):
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools 1.71.2 (make proto)")
    source = Path(wire.__file__).parent / "proto"
    target = tmp_path / "chunkrl/online/proto"
    target.mkdir(parents=True)
    shutil.copy(source / "online.proto", target)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", "--python_out=.", "--pyi_out=."]
    subprocess.run([*command, "chunkrl/online/proto/online.proto"], cwd=tmp_path, check=True)
    for name in ("online_pb2.py", "online_pb2.pyi"):
        assert (target / name).read_text() == (source / name).read_text()
