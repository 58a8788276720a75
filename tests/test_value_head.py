"""Value heads: what their outputs mean, and what their losses teach."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chunkrl.errors import ChunkRLError
from chunkrl.models.value_head import ValueHead

HEADS = (ValueHead("scalar"), ValueHead("sigmoid"), ValueHead("hl_gauss"), ValueHead("hl_gauss", 51, 2.0))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("target", [0.0, 0.02, 0.5, 0.77, 1.0])
def test_the_loss_is_least_where_the_value_is_the_target(head: ValueHead, target: float) -> None:
    """Gradient descent on free outputs finds the target, at the ends of the range too."""
    torch.manual_seed(0)
    outputs = torch.zeros(1, head.num_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([outputs], max_iter=200, line_search_fn="strong_wolfe")
    goal = torch.tensor([target])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = head.loss(outputs, goal).mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert float(head.value(outputs.detach())[0]) == pytest.approx(target, abs=2e-3)


@given(st.floats(0, 1))
def test_a_smoothed_target_is_a_distribution_around_it(target: float) -> None:
    head = ValueHead("hl_gauss")
    probabilities = head.smoothed(torch.tensor([target], dtype=torch.float64))
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-6)
    assert bool((probabilities >= 0).all())
    value = head.value(probabilities.clamp(min=1e-30).log())
    assert float(value[0]) == pytest.approx(target, abs=1e-4)


def test_hl_gauss_against_the_normal_distribution() -> None:
    head = ValueHead("hl_gauss", num_bins=11, sigma=1.0)  # 8 bins of margin leave 3 for [0, 1]: width 1 / 3
    width, target = 1 / 3, 0.5
    edges = [-4 * width + width * index for index in range(12)]

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((x - target) / (width * math.sqrt(2))))

    total = below(edges[-1]) - below(edges[0])
    expected = [(below(b) - below(a)) / total for a, b in pairwise(edges)]
    assert head.smoothed(torch.tensor([target]))[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_sigmoid_and_scalar_in_closed_form() -> None:
    outputs = torch.tensor([[0.3], [-1.0]])
    target = torch.tensor([0.25, 1.0])
    p = torch.sigmoid(outputs[:, 0])
    entropy = -(target * p.log() + (1 - target) * (1 - p).log())
    assert torch.allclose(ValueHead("sigmoid").loss(outputs, target), entropy)
    assert torch.allclose(ValueHead("scalar").loss(outputs, target), (outputs[:, 0] - target) ** 2)


@pytest.mark.parametrize("head", HEADS)
def test_folds_stand_in_front(head: ValueHead) -> None:
    outputs = torch.randn(3, 4, head.num_outputs)
    target = torch.rand(4)
    loss = head.loss(outputs, target)
    assert loss.shape == (3, 4) == head.value(outputs).shape
    assert torch.allclose(loss[1], head.loss(outputs[1], target))


@pytest.mark.parametrize(
    "settings", [{"kind": "quantile"}, {"sigma": 0.0}, {"num_bins": 8}, {"num_bins": 20, "sigma": 3.0}]
)
def test_settings_that_cannot_be_are_refused(settings: dict) -> None:
    with pytest.raises(ChunkRLError):
        ValueHead(**settings)
