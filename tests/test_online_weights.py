"""Weights on their way to an actor: bfloat16, all or nothing."""

import pytest
import torch
from torch import nn

from chunkrl.errors import RecordError, TransportError
from chunkrl.online import wire
from chunkrl.online.records import TensorData, WeightPush
from chunkrl.online.versions import VersionCounter
from chunkrl.online.weights import apply_push, make_push


def parameters(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    return dict(net.named_parameters()) | {
        "scale": torch.randn((), dtype=dtype),
        "t": torch.randn(3, 2, dtype=dtype).T,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_arrive_rounded_to_bfloat16(dtype):
    sent, target = parameters(1), parameters(2, dtype)
    push = make_push(4, sent)
    apply_push(wire.decode_weights(wire.encode_weights(push)) or push, target)
    for name, values in target.items():
        assert values.dtype == dtype
        torch.testing.assert_close(values.detach(), sent[name].detach().bfloat16().to(dtype), rtol=0, atol=0)


def test_a_push_that_does_not_fit_changes_nothing():
    target = parameters(2)
    before = {name: values.detach().clone() for name, values in target.items()}
    good = make_push(1, parameters(1))
    last = list(good.tensors)[-1]
    nan = torch.full((6,), torch.nan, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    cases = {
        "lacks .'t'.": {name: tensor for name, tensor in good.tensors.items() if name != last},
        "has .'more'. that this policy does not train": {**good.tensors, "more": good.tensors[last]},
        "t is bfloat16 .3, 2., this policy's is bfloat16 .2, 3.": {
            **good.tensors,
            last: TensorData("bfloat16", (3, 2), bytes(12)),
        },
        "t is float16": {**good.tensors, last: TensorData("float16", (2, 3), bytes(12))},
        "t holds NaN or inf; the old weights stay": {
            **good.tensors,
            last: TensorData("bfloat16", (2, 3), nan),
        },
    }
    for text, tensors in cases.items():
        with pytest.raises(RecordError, match=text):
            apply_push(WeightPush.make(1, tensors), target)
        assert all(torch.equal(values, before[name]) for name, values in target.items())
    apply_push(good, target)
    assert not torch.equal(target["t"], before["t"])


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
