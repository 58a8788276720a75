"""Records as protobuf bytes and back. What comes from a peer is bounded and checked before it is used: whatever
the bytes are, decoding gives a record or a RecordError.

Library considered: protobuf, which packs, over gRPC; written here are the bounds that it does not check. pickle
runs what a peer wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from chunkrl.errors import RecordError
from chunkrl.install import MissingExtraError
from chunkrl.online.link.images import check_packed, unpack
from chunkrl.online.link.records import (
    ITEM_SIZES,
    EpisodeSummary,
    Hello,
    Item,
    StepRecord,
    StreamSpec,
    TensorData,
    WeightPush,
    Welcome,
    check_id,
    check_name,
)

try:
    from google.protobuf.message import DecodeError, Message

    from chunkrl.online.proto import online_pb2 as pb
except ImportError as error:
    raise MissingExtraError("Online training", "protobuf", "online") from error

MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest message: a step of eight cameras of 1280 x 720 has 22 MB."""
MAX_WEIGHT_BYTES = 16 * 2**30
WEIGHT_CHUNK_BYTES = 2**20

_DTYPES = {name: pb.DType.Value(name.upper()) for name in ITEM_SIZES}
_DTYPE_NAMES = {number: name for name, number in _DTYPES.items()}

MessageT = TypeVar("MessageT", bound=Message)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """Items (serialised) with the numbers first_sequence, first_sequence + 1, ... of one actor's spool."""

    actor_id: str
    spool_id: str
    protocol: int
    first_sequence: int
    items: Sequence[bytes]

    def __post_init__(self) -> None:
        check_name("actor_id", self.actor_id)
        check_id("spool_id", self.spool_id)
        if self.first_sequence + len(self.items) >= 2**63:
            raise RecordError(f"first_sequence {self.first_sequence}: too large")


@dataclass(frozen=True)
class WeightRequest:
    """Asks for weights of a version above `newer_than`."""

    actor_id: str
    protocol: int
    newer_than: int

    def __post_init__(self) -> None:
        check_name("actor_id", self.actor_id)


def tensor_from_numpy(array: np.ndarray) -> TensorData:
    """Any shape of at most 8 dimensions; types of `ITEM_SIZES`."""
    if array.dtype.name not in ITEM_SIZES:
        raise RecordError(f"array of type {array.dtype}: use one of {', '.join(ITEM_SIZES)}")
    return TensorData(array.dtype.name, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes())


def tensor_to_numpy(tensor: TensorData) -> np.ndarray:
    """The array, read-only. bfloat16 has no NumPy type: RecordError."""
    if tensor.dtype == "bfloat16":
        raise RecordError("a bfloat16 tensor where numbers of a NumPy type belong")
    if tensor.dtype == "bool" and tensor.data.translate(None, b"\x00\x01"):
        raise RecordError("a bool tensor with bytes other than 0 and 1")
    dtype = np.dtype(tensor.dtype)
    return np.frombuffer(tensor.data, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(tensor.shape)


def encode_item(item: Item) -> bytes:
    """A step or an episode's end, as spools and batches hold it."""
    message = pb.Item()
    if isinstance(item, EpisodeSummary):
        _copy(item, message.summary, _SUMMARY_FIELDS)
        return message.SerializeToString()
    _copy(item, message.step, _STEP_FIELDS)
    for name in _STEP_TENSORS:
        _put_tensor(tensor_from_numpy(getattr(item, name)), getattr(message.step, name))
    for name, picture in item.images.items():
        camera = message.step.cameras.add(name=name)
        _put_tensor(tensor_from_numpy(picture), camera.picture)
    return message.SerializeToString()


def decode_item(data: bytes) -> Item:
    """The item that `encode_item` made into `data`; raises RecordError where it is anything else."""
    message = _parse(pb.Item, data, "step")
    kind = message.WhichOneof("item")
    if kind == "summary":
        fields = _fields(message.summary, _SUMMARY_FIELDS)
        return EpisodeSummary(**fields)
    if kind != "step":
        raise RecordError(
            "a message with neither a step nor an episode's end: actor and learner differ in version"
        )
    step = message.step
    fields = _fields(step, _STEP_FIELDS)
    fields |= {name: tensor_to_numpy(_get_tensor(getattr(step, name))) for name in _STEP_TENSORS}
    check_packed(step.cameras)
    pictures = [(camera.name, _picture(camera)) for camera in step.cameras]
    return StepRecord(**fields, images=_unique("camera", pictures))


def _picture(camera: pb.Camera) -> np.ndarray:
    if camera.HasField("packed"):
        return unpack(camera.packed.data, camera.packed.height, camera.packed.width)
    return tensor_to_numpy(_get_tensor(camera.picture))


def encode_hello(hello: Hello) -> bytes:
    """The message that `Greet` sends."""
    spec = hello.spec
    message = pb.Hello(features=hello.features)
    _copy(hello, message, ("actor_id", "spool_id", "min_protocol", "max_protocol"))
    _copy(spec, message.spec, ("fps", "robot_type"))
    message.spec.state_names.extend(spec.state_names)
    message.spec.action_names.extend(spec.action_names)
    for name, (height, width) in spec.cameras.items():
        message.spec.cameras.add(name=name, height=height, width=width)
    return message.SerializeToString()


def decode_hello(data: bytes) -> Hello:
    """Raises RecordError where `data` is no Hello."""
    message = _parse(pb.Hello, data, "greeting")
    spec = message.spec
    cameras = _unique("camera", [(camera.name, (camera.height, camera.width)) for camera in spec.cameras])
    return Hello(
        message.actor_id,
        message.spool_id,
        StreamSpec(spec.fps, tuple(spec.state_names), tuple(spec.action_names), cameras, spec.robot_type),
        message.min_protocol,
        message.max_protocol,
        tuple(message.features),
    )


def encode_welcome(welcome: Welcome) -> bytes:
    """The message that answers `Greet`."""
    message = pb.Welcome(features=welcome.features)
    _copy(welcome, message, ("protocol", "next_sequence", "weights_version"))
    return message.SerializeToString()


def decode_welcome(data: bytes) -> Welcome:
    """Raises RecordError where `data` is no Welcome."""
    message = _parse(pb.Welcome, data, "answer to the greeting")
    fields = _fields(message, ("protocol", "next_sequence", "weights_version"))
    return Welcome(**fields, features=tuple(message.features))


def encode_batch(batch: Batch) -> bytes:
    """The message that `Append` sends."""
    message = pb.Batch(items=batch.items)
    _copy(batch, message, ("actor_id", "spool_id", "protocol", "first_sequence"))
    return message.SerializeToString()


def decode_batch(data: bytes) -> Batch:
    """Raises RecordError where `data` is no Batch; its items are not decoded yet."""
    message = _parse(pb.Batch, data, "batch")
    fields = _fields(message, ("actor_id", "spool_id", "protocol", "first_sequence"))
    return Batch(**fields, items=tuple(message.items))


def encode_acknowledgement(next_sequence: int) -> bytes:
    """All items below `next_sequence` are stored."""
    return pb.Acknowledgement(next_sequence=next_sequence).SerializeToString()


def decode_acknowledgement(data: bytes) -> int:
    """The first number that the learner lacks."""
    return _parse(pb.Acknowledgement, data, "acknowledgement").next_sequence


def encode_weight_request(request: WeightRequest) -> bytes:
    """The message that `FetchWeights` sends."""
    message = pb.WeightRequest()
    _copy(request, message, ("actor_id", "protocol", "newer_than"))
    return message.SerializeToString()


def decode_weight_request(data: bytes) -> WeightRequest:
    """Raises RecordError where `data` is no WeightRequest."""
    message = _parse(pb.WeightRequest, data, "request for weights")
    return WeightRequest(**_fields(message, ("actor_id", "protocol", "newer_than")))


def encode_weights(push: WeightPush, own_steps: int | None = None) -> Iterator[bytes]:
    """The messages of `FetchWeights`: a head, then the values in pieces of 1 MiB.

    own_steps: what the receiving actor's push says in place of `push.own_steps`.
    """
    head = pb.WeightHead(version=push.version, checksum=push.checksum, num_steps=push.num_steps)
    own_steps = push.own_steps if own_steps is None else own_steps
    if own_steps is not None:
        head.own_steps = own_steps
    for name, tensor in push.tensors.items():
        head.tensors.add(name=name, dtype=cast("Any", _DTYPES[tensor.dtype]), shape=tensor.shape)
    yield pb.WeightChunk(head=head).SerializeToString()
    for tensor in push.tensors.values():
        for begin in range(0, len(tensor.data), WEIGHT_CHUNK_BYTES):
            piece = tensor.data[begin : begin + WEIGHT_CHUNK_BYTES]
            yield pb.WeightChunk(data=piece).SerializeToString()


def decode_weights(messages: Iterable[bytes], max_bytes: int = MAX_WEIGHT_BYTES) -> WeightPush | None:
    """The push that `encode_weights` took apart; None where there is no message (nothing newer).

    Raises:
        RecordError: too large, cut off, too long, another order, or the checksum differs.
    """
    head, buffers, wanted, received = None, bytearray(), 0, 0
    for data in messages:
        message = _parse(pb.WeightChunk, data, "weights")
        if head is None:
            if message.WhichOneof("part") != "head":
                raise RecordError("weights that begin without a head: refused")
            head = message.head
            wanted = sum(_tensor_bytes(tensor) for tensor in head.tensors)
            if wanted > max_bytes:
                raise RecordError(
                    f"weights of {wanted} bytes, more than the {max_bytes} allowed: train fewer parameters (LoRA)"
                )
            continue
        if message.WhichOneof("part") != "data":
            raise RecordError("weights with a second head: refused")
        received += len(message.data)
        if received > wanted:
            raise RecordError(f"weights of more than the {wanted} bytes that their head says: refused")
        buffers += message.data
    if head is None:
        return None
    if received != wanted:
        raise RecordError(
            f"weights cut off after {received} of {wanted} bytes: refused, they are fetched again"
        )
    tensors, begin, view = [], 0, memoryview(buffers)
    for tensor in head.tensors:
        size = _tensor_bytes(tensor)
        values = bytes(view[begin : begin + size])
        tensors.append((tensor.name, TensorData(_dtype_name(tensor.dtype), tuple(tensor.shape), values)))
        begin += size
    own_steps = head.own_steps if head.HasField("own_steps") else None
    return WeightPush(head.version, _unique("parameter", tensors), head.checksum, head.num_steps, own_steps)


_STEP_FIELDS = (
    *("actor_id", "episode_id", "step_index", "task", "human", "held", "policy_version"),
    *("reward", "success", "terminated", "truncated"),
)
_STEP_TENSORS = ("state", "proposed_action", "executed_action")
_SUMMARY_FIELDS = ("actor_id", "episode_id", "num_steps", "outcome", "total_reward", "num_interventions")


def _parse(kind: Callable[[], MessageT], data: bytes, what: str) -> MessageT:
    if len(data) > MAX_MESSAGE_BYTES:
        raise RecordError(f"{what} of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}: send smaller images")
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise RecordError(f"{what} of {len(data)} bytes is damaged or no such message: {error}") from error
    return message


def _copy(record: object, message: Message, names: Sequence[str]) -> None:
    for name in names:
        setattr(message, name, getattr(record, name))


def _fields(message: Message, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names}


def _unique(kind: str, pairs: Sequence[tuple[str, Result]]) -> dict[str, Result]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise RecordError(f"a {kind} that is there twice: {sorted(name for name, _ in pairs)}")
    return result


def _put_tensor(tensor: TensorData, message: pb.Tensor) -> None:
    message.dtype = cast("Any", _DTYPES[tensor.dtype])
    message.shape.extend(tensor.shape)
    message.data = tensor.data


def _get_tensor(message: pb.Tensor) -> TensorData:
    return TensorData(_dtype_name(message.dtype), tuple(message.shape), message.data)


def _dtype_name(number: int) -> str:
    if number not in _DTYPE_NAMES:
        raise RecordError(f"tensor of unknown type {number}: missing, or the peer is newer")
    return _DTYPE_NAMES[number]


def _tensor_bytes(message: pb.TensorHead) -> int:
    size = ITEM_SIZES[_dtype_name(message.dtype)]
    for n in message.shape:
        size *= n
    return size
