"""The documents' names lead somewhere: commands with one word changed, modules of the table, install lines."""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from chunkrl.cli import commands

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "docs" / "documents.md").read_text()
EXTRAS = (
    (ROOT / "pyproject.toml")
    .read_text()
    .split("[project.optional-dependencies]")[1]
    .split("[project.scripts]")[0]
)

# the chunk-level document's command lines, without `poetry run python -m`
DOCUMENT = [
    (
        "model.scripts.train --dataset-dir data/lerobot/libero_spatial --action-horizon 10 --action-dim 7"
        " --num-epochs 100 --device cuda",
        "train",
        {"dataset_dir": "data/lerobot/libero_spatial", "num_epochs": 100, "device": "cuda"},
    ),
    (
        "model.scripts.train --dataset-dir data/lerobot/libero_spatial --use-pi0-actions --pi0-config pi05_libero"
        " --pi0-checkpoints-dir checkpoints/pi0 --action-horizon 10 --action-dim 7 --batch-size 64 --num-epochs 100"
        " --lr 3e-4 --device cuda",
        "train",
        {"use_pi0_actions": True, "pi0_config": "pi05_libero", "batch_size": 64, "lr": 3e-4},
    ),
    (
        "model.scripts.train --dataset-dir x --gamma 0.99 --beta 1.0 --lambda-v 1.0 --lambda-pi 1.0"
        " --save-interval 10 --log-interval 100",
        "train",
        {
            "gamma": 0.99,
            "beta": 1.0,
            "lambda_v": 1.0,
            "lambda_pi": 1.0,
            "save_interval": 10,
            "log_interval": 100,
        },
    ),
    (
        "model.scripts.download_pi0_checkpoints --checkpoints pi0_libero",
        "download",
        {"checkpoints": ("pi0_libero",)},
    ),
    ("model.scripts.download_pi0_checkpoints --checkpoints all", "download", {"checkpoints": ("all",)}),
    (
        "model.scripts.download_from_huggingface --repo-id yunzhenzhang/rlvla --download-dir checkpoints/pi0/rlvla",
        "download",
        {"repo_id": "yunzhenzhang/rlvla", "download_dir": "checkpoints/pi0/rlvla"},
    ),
    ("model.scripts.check_dependencies", "doctor", {}),
]


@pytest.mark.parametrize(("line", "command", "settings"), DOCUMENT, ids=[line for line, _, _ in DOCUMENT])
def test_the_documents_commands_run_with_one_word_changed(
    line: str, command: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, Any]] = []
    monkeypatch.setattr(commands.Command, "__call__", lambda self, options: ran.append((self.name, options)))
    module, *arguments = shlex.split(line.replace("model.", "chunkrl.", 1))
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    runpy.run_module(module, run_name="__main__")
    ((name, options),) = ran
    assert name == command
    assert {key: getattr(options, key) for key in settings} == settings


def test_all_that_the_table_names_is_there() -> None:
    here = "\n".join("|".join(line.split("|")[2:]) for line in TABLE.splitlines() if line.startswith("| `"))
    modules = set(re.findall(r"`(?:python -m )?(chunkrl\.[\w.]+)`", here))
    assert len(modules) > 30
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    assert missing == []
    for module, names in re.findall(r"`from (chunkrl[\w.]*) import ([\w, ]+)`", here):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "config.defaults",
            "data.dataset",
            "models.encoders",
            "models.critic",
            "models.value",
            "models.policy",
        ),
        *("training.trainer", "training.losses", "integration.pi0", "utils.helpers", "scripts.train"),
        *(
            "scripts.download_pi0_checkpoints",
            "scripts.download_from_huggingface",
            "model.scripts.check_dependencies",
        ),
        *("actor_pi05.py", "learner_pi05.py", "rl_pi05.py", "offline_learner_pi05.py", "rl/utils.py"),
    ],
)
def test_every_module_of_the_documents_is_in_the_table(name: str) -> None:
    there = " ".join(line.split("|")[1] for line in TABLE.splitlines() if line.startswith("| `"))
    assert re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", there)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_install_lines_work_from_a_checkout(page: str) -> None:
    known = set(re.findall(r"^(\w+) = ", EXTRAS, re.MULTILINE))
    text = (ROOT / page).read_text()
    assert "chunkrl[" not in text  # of an index that has no chunkrl
    for line in re.findall(r"pip install [^`#\n]*'\.[^`#\n]*", text):
        assert line.startswith("pip install -c constraints.txt '.")
        extras = re.search(r"'\.\[([\w,]+)\]'", line)
        assert extras is not None and set(extras[1].split(",")) <= known
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        fetched = re.search(r"^chunkrl download (?!.*--repo-id)", block, re.MULTILINE)
        if fetched and "pip install" in block:  # the published checkpoints are in a bucket
            assert re.search(r"'\.\[[\w,]*gcs[\w,]*\]'", block)
