"""Images are packed without loss on the wire, and what comes packed is bounded."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isal import isal_zlib
from online_peers import SMALL, client
from online_records import episode, same, step
from waiting import until

from chunkrl.errors import RecordError
from chunkrl.online.link.config import ListenConfig
from chunkrl.online.link.images import FEATURE, MAX_UNPACKED_BYTES, pack, pack_item, unpack
from chunkrl.online.link.records import Welcome
from chunkrl.online.link.spool import Spool
from chunkrl.online.link.streams import ReceivedStreams
from chunkrl.online.link.transport import SpoolReceiver
from chunkrl.online.link.wire import decode_item, encode_item
from chunkrl.online.proto import online_pb2 as pb

SMOOTH = np.broadcast_to(np.arange(12, dtype=np.uint8)[None, :, None] * 21, (8, 12, 3)).copy()


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
@settings(max_examples=50)
def test_packed_pictures_are_the_same_pictures(picture):
    np.testing.assert_array_equal(unpack(pack(picture), *picture.shape[:2]), picture)


def test_an_item_is_packed_where_that_makes_it_smaller():
    smooth = step(1, 2, images={"front": np.repeat(SMOOTH, 3, axis=0), "side": SMOOTH})
    raw = encode_item(smooth)
    packed = pack_item(raw)
    assert len(packed) < len(raw) / 3 and same(decode_item(packed), smooth)
    noise = encode_item(step(1, 2))
    assert pack_item(noise) == noise  # no lossless code makes noise smaller
    summary = encode_item(episode(1, 2)[-1])
    assert pack_item(summary) == summary


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-5],
        lambda data: data + b"x",
        lambda data: b"\x00" + data[1:],
        lambda data: b"",
        lambda data: isal_zlib.compress(bytes(8 * 12 * 3 - 1)),
        lambda data: isal_zlib.compress(bytes(8 * 12 * 3 + 1)),
    ],
)
def test_damaged_pictures_are_refused(damage):
    with pytest.raises(RecordError, match="image"):
        unpack(damage(pack(SMOOTH)), 8, 12)


def _packed_item(height: int, width: int, data: bytes, codec: int = pb.DEFLATED_DIFFERENCES) -> bytes:
    message = pb.Item.FromString(encode_item(step(1, 2)))
    camera = message.step.cameras[0]
    camera.ClearField("picture")
    camera.packed.height, camera.packed.width, camera.packed.data = height, width, data
    camera.packed.codec = codec  # pyright: ignore[reportAttributeAccessIssue]
    return message.SerializeToString()


def test_little_data_never_becomes_much_memory():
    bomb = isal_zlib.compress(bytes(200 * 2**20), 3)  # 200 MiB in below 1
    tracemalloc.start()
    for height, width in ((8, 12), (2**31, 2**31), (0, 5), (4096, 6000)):
        with pytest.raises(RecordError):
            decode_item(_packed_item(height, width, bomb))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(bomb) < 2**20 and peak < 2 * MAX_UNPACKED_BYTES
    for codec in (0, 99):
        with pytest.raises(RecordError, match="newer"):
            decode_item(_packed_item(8, 12, pack(SMOOTH), codec))


@pytest.mark.parametrize("knows", [True, False])
def test_pictures_are_packed_for_a_learner_that_knows_how(tmp_path, monkeypatch, knows):
    """An older learner gets raw ones; a newer one stores what came, and both have the same records."""
    features = ("weights", FEATURE) if knows else ("weights",)
    monkeypatch.setattr("chunkrl.online.link.transport.FEATURES", features)
    streams = ReceivedStreams(tmp_path / "learner")
    receiver = SpoolReceiver(ListenConfig("127.0.0.1:0"), streams)
    port = receiver.start()
    sent = [step(0, i, images={"front": SMOOTH}) for i in range(3)]
    with Spool(tmp_path / "actor") as spool:
        for record in sent:
            spool.append(encode_item(record))
        link = client(spool, port, config=SMALL)
        welcome = link.greet()
        assert isinstance(welcome, Welcome) and (FEATURE in welcome.features) == knows
        until(lambda: link.drain() == 0)
        assert spool.acknowledged == 3
        link.close()
    stored = streams.spool("arm").read(0, 2**20)
    receiver.stop(0)
    streams.close()
    assert all(same(decode_item(data), record) for data, record in zip(stored, sent, strict=True))
    assert (len(stored[0]) < len(encode_item(sent[0]))) == knows
