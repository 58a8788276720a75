"""The arms of `benchmarks.pi_metaworld`: what a tiny pi0.5 is trained to do with advantages, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from chunkrl.algorithms import registry
from chunkrl.algorithms.config import BalanceConfig, ConditioningConfig
from chunkrl.algorithms.value_config import Draw, ValueFit
from chunkrl.run.config import Objective

HIGH, LOW = "Advantage: positive", "Advantage: negative"


class Question(NamedTuple):
    """How a trained policy is asked to act. away: what guidance leads away from."""

    condition: str
    guidance: float | None = None
    away: str = ""


@dataclass(frozen=True)
class Arm:
    """One training. asked: suffix of its name -> a way in which the trained policy is asked to act. conditioning: of
    its labels. draw: of starts, scale: of advantages, balance: of weights: where it weights."""

    objective: Objective
    asked: Mapping[str, Question]
    conditioning: ConditioningConfig = ConditioningConfig()
    draw: Draw = "uniform"
    scale: float = ValueFit().advantage_scale
    balance: BalanceConfig = BalanceConfig()

    @property
    def uses_values(self) -> bool:
        """Whether it needs V."""
        return self.objective not in ("behaviour_cloning", "success_cloning")

    def settings(self) -> dict[str, Any]:
        """What tells it from other arms, as JSON has it."""
        found: dict[str, Any] = {"objective": self.objective, "draw": self.draw}
        if "condition" in self.objective:
            found["conditioning"] = asdict(self.conditioning)
            del found["conditioning"]["guidance_from"]  # it trains nothing; the questions say what it is
        if registry.METHODS[self.objective].reads_setting("fit.advantage_scale"):
            found |= {"scale": self.scale, "failures": self.balance.failures}
        return json.loads(json.dumps(found))


PLAIN = {"": Question("")}  # guidance leads towards a condition alone
TWICE = {" high": Question(HIGH, 1.0), " high, guidance 2": Question(HIGH, 2.0)}
AWAY = {f" high, {g:g} from low": Question(HIGH, g, LOW) for g in (1.5, 2.0)}  # the default's guidance
REST = {" low": Question(LOW, 1.0), " not asked": Question("")}
# RECAP as published: two labels, the top 30 % of roll-outs and all successes positive, rows as they come
RECAP = {"edges": "quantiles", "cuts": (0.7,), "success": "force", "positive_share": None}

_TOGETHER = BalanceConfig(failures="together")

ARMS: dict[str, Arm] = {
    "success_cloning": Arm("success_cloning", PLAIN),
    "behaviour_cloning": Arm("behaviour_cloning", PLAIN),
    "weighted": Arm("cross_fitted", PLAIN),
    # the defaults of before
    "weighted, failures apart": Arm("cross_fitted", PLAIN, balance=BalanceConfig(failures="apart")),
    "weighted, failures together": Arm("cross_fitted", PLAIN, balance=_TOGETHER),
    "weighted, scale 3": Arm("cross_fitted", PLAIN, scale=3.0, balance=_TOGETHER),
    "weighted, drawn by weight": Arm("cross_fitted", PLAIN, draw="weight"),
    "conditioned": Arm("advantage_conditioned", TWICE | AWAY | REST),
    "recap, dropout .1": Arm("advantage_conditioned", TWICE, ConditioningConfig(dropout=0.1, **RECAP)),
    "recap, dropout .3": Arm("advantage_conditioned", TWICE, ConditioningConfig(dropout=0.3, **RECAP)),
    "conditioned, shuffled": Arm("shuffled_conditioning", TWICE | AWAY),
}
# To choose the label's dropout and the guidance by, on development data (--data-seed 777 --eval-seed 4243).
FURTHER = {f" high, {g:g} from low": Question(HIGH, g, LOW) for g in (1.25, 3.0)}
CANDIDATES: dict[str, Arm] = {
    f"conditioned, dropout {dropout:g}": Arm(
        "advantage_conditioned", TWICE | AWAY | FURTHER, ConditioningConfig(dropout=dropout)
    )
    for dropout in (0.0, 0.1, 0.3)
}
METHODS = (
    "conditioned high",
    *(f"conditioned{name}" for name in AWAY),
    "conditioned high, guidance 2",
    "weighted",
    "weighted, drawn by weight",
)


PRETRAINED = Arm("behaviour_cloning", PLAIN)


def by_question(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """The arm of each way in which a policy is asked to act, by the name of its record; the pretrained one first."""
    asked = {name + suffix: arm for name, arm in arms.items() for suffix in arm.asked}
    return {"pretrained": PRETRAINED} | asked
