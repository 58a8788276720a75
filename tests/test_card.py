"""Cards of the Hub: what they say of a policy, its run and its evaluations, and that no text breaks them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from chunk_data import random_episodes, settings, write_dataset
from evaluations import SETTINGS, evaluation
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pi_tiny import tiny_policy, tiny_recipe

from chunkrl import ChunkLevelOfflineRL
from chunkrl.evaluation.evaluation_result import write_evaluation
from chunkrl.models.pi.checkpoint import save_pretrained
from chunkrl.progress import silent
from chunkrl.report.card import CardRequest, card_of_policy
from chunkrl.report.dataset_card import card_of_dataset
from chunkrl.report.load_run import load_run
from chunkrl.report.markdown import escape, table
from chunkrl.report.run import value_quality_of
from chunkrl.report.tables import Table
from chunkrl.version import __version__

EVIL = "push | the `cup`\n\n# <b>now</b> *then* [x](y) $z$ 1. ~~no~~ \\"
REQUEST = CardRequest("owner/name", "mit")
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    data = write_dataset(root / "cups", random_episodes(6), tasks=(EVIL,))
    ChunkLevelOfflineRL(**settings(data, root / "run", gamma=0.5)).train()
    return root / "run"


def front(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def cells(card: str) -> list[list[str]]:
    """The rows of all tables, as a reader of Markdown sees them."""
    rows: list[list[str]] = []
    for token in MARKDOWN.parse(card.split("---\n", 2)[2]):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level == 4:
            kinds = {child.type for child in token.children or ()}
            assert kinds <= {"text", "text_special"}, kinds
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows


@given(st.text())
def test_any_text_is_one_cell_that_says_it(text: str) -> None:
    drawn = table(Table([{"before": "b", "text": text, "after": "a"}]))
    expected = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    row = cells(f"---\n---\n{drawn}")[1]
    assert (row if expected else [row[0], "", row[-1]]) == ["b", expected, "a"]


@given(st.text(alphabet="-+=*_#1.) \n`~|<>&[]!\\a", max_size=12))
def test_any_text_is_one_line_of_a_list(text: str) -> None:
    tokens = MARKDOWN.parse(f"- {escape(text)}\n- end\n")
    assert [t.type for t in tokens if t.type.endswith("_open")].count("list_item_open") == 2
    assert not {t.type for t in tokens} & {
        "heading_open",
        "hr",
        "code_block",
        "fence",
        "html_block",
        "ordered_list_open",
    }
    assert sum(t.type == "bullet_list_open" for t in tokens) == 1


def test_a_policy_without_its_run(run: Path) -> None:
    assert card_of_policy(REQUEST, run / "policy", None, (), "") == POLICY.replace("VERSION", __version__)


def test_what_is_said_of_the_run(run: Path) -> None:
    loaded = load_run(run)
    card = card_of_policy(REQUEST, run / "policy", loaded, (), "")
    told = " ".join("".join(c if c.isprintable() else " " for c in EVIL).split())
    data = loaded.data[0].dataset
    assert cells(card) == [
        ["data set", "task", "episodes", "successful", "frames", "frames per second", "made by a human"],
        ["cups", told, "6", "50 %", str(data.num_frames), "10", "0 %"],
    ]
    quality = value_quality_of(loaded)
    assert quality is not None
    held_out = f"{quality.held_out:.2f}".replace("-", "−")
    assert f"- rank correlation with the return: {held_out}\n" in card
    assert f"calibration error, in units of returns: {quality.calibration.error:.3f}" in card
    for line in (
        "- gamma: 0.5",
        "- cups: success by next.success, sub-goals by success",
        "- objective: cross fitted",
    ):
        assert line in card
    assert str(run.parent) not in card


def test_where_files_are_is_not_said(run: Path) -> None:
    loaded = load_run(run)
    config = replace(loaded.config, pi0_config="/home/me/pi", values="~/runs/v")
    away = replace(loaded, config=config, notes=("data of an actor (/data/me/robot-1), a 1/2 share",))
    card = card_of_policy(REQUEST, run / "policy", away, (), "")
    for said in (
        "gaussian (pi)",
        "- values: v\n",
        "data of an actor (robot-1), a 1/2 share",
        "- pi0\\_config: pi\n",
    ):
        assert said in card
    assert "/me" not in card and "~/" not in card


def test_evaluations_and_controls(run: Path, tmp_path: Path) -> None:
    """Rates, intervals and McNemar's p in closed form."""
    rows = {"new": ((1,) * 6, (1, 0, 1, 0, 1, 1)), "old": ((0, 0, 0, 0, 0, 1), (1, 0, 0, 0, 1, 1))}
    for name, outcomes in rows.items():
        found = evaluation(*outcomes, settings=replace(SETTINGS, fingerprint=name, mode="mode"))
        write_evaluation(tmp_path / name, found)
    one = card_of_policy(REQUEST, run / "policy", None, (str(tmp_path / "new"),), "new")
    assert cells(one)[1][:6] == ["mean over tasks", "new", "10", "12", "83.3 %", "55.2 to 95.3 %"]
    assert "- executed: 2 of 5 actions of each chunk" in one and "in percentage points" not in one
    given_ = (str(tmp_path / "old"), f"a_b={tmp_path / 'new'}")
    both = cells(card_of_policy(REQUEST, run / "policy", None, given_, "new"))
    assert [row[:4] for row in both[1:3]] == [
        ["mean over tasks", "a b", "10", "12"],
        ["mean over tasks", "old", "4", "12"],
    ]
    differences = both[both.index(next(row for row in both if "points" in row)) :]
    assert differences[1][:3] == ["mean over tasks", "old", "+50"] and differences[1][-1] == "p = 0.031"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("hf://lerobot/pi05_base@main", "lerobot/pi05_base"),
        ("gs://openpi-assets/checkpoints/pi05_base", None),
    ],
)
def test_a_pi_policy(tmp_path: Path, url: str, base: str | None) -> None:
    recipe = tiny_recipe("pi05", resize="bilinear", condition="Advantage: positive", guidance=1.5)
    save_pretrained(tiny_policy("pi05", recipe), tmp_path / "p")
    card = card_of_policy(replace(REQUEST, base_url=url), tmp_path / "p", None, (), "")
    assert front(card).get("base_model") == base and front(card)["library_name"] == "chunkrl"
    for line in (
        "- prompt format: pi05\\_state",
        "- guidance: 1.5",
        "- asked with: Advantage: positive, after the state",
    ):
        assert line in card
    assert (
        "cannot write ', Advantage: positive' after the state; has no classifier-free guidance. chunkrl acts"
        in card
    )


def test_a_pi_policy_that_stock_lerobot_runs(tmp_path: Path) -> None:
    recipe = tiny_recipe("pi05", resize="bilinear", normalization_epsilon=0.0)
    save_pretrained(tiny_policy("pi05", recipe), tmp_path / "p")
    card = card_of_policy(REQUEST, tmp_path / "p", None, (), "")
    assert front(card)["library_name"] == "lerobot" and "Stock LeRobot runs it as it was trained:" in card
    assert "pip install 'lerobot[pi]'\nlerobot-eval --policy.path=owner/name" in card


def test_a_data_set(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "d", random_episodes(4), tasks=("push", EVIL))
    card = card_of_dataset(replace(REQUEST, revision="v2"), data, silent)
    assert front(card) == {
        "license": "mit",
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "chunkrl"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    told = " ".join(EVIL.replace("\n", " ").split())
    assert cells(card) == [["task", "episodes"], ["push", "2"], [told, "2"]]
    assert "- successful: 50 % of the episodes, success by next.success" in card
    assert "chunkrl pull owner/name --what dataset --revision v2" in card and str(tmp_path) not in card


POLICY = """\
---
license: mit
library_name: chunkrl
pipeline_tag: robotics
tags:
- robotics
- chunkrl
- LeRobot
- offline-rl
---

# name

A policy that acts in chunks of actions, saved by chunkrl.

- observation.state: input, 3
- action: output, 2
- actions per chunk: 3

## In LeRobot

With chunkrl's plug-in, which acts as chunkrl does:

```bash
pip install . plugins/lerobot_policy_chunkrl  # in a checkout of chunkrl
lerobot-eval --policy.path=owner/name --env.type=ENV           # in a simulator
lerobot-rollout --policy.path=owner/name --robot.type=ROBOT    # on a robot, from LeRobot 0.6
```

## In chunkrl

```bash
pip install .  # in a checkout of chunkrl
chunkrl pull owner/name
```

```python
import chunkrl

policy = chunkrl.load_policy("name")
actions = policy.act(observation)  # chunkrl.Observation of the inputs above; actions in the data's units
```

The run that made it was not there when this card was made: nothing is said of its data and its training.

## Evaluation

None is known to this card.

Made by chunkrl VERSION.
"""
