"""Families of simulators: nobody else knows one by name, and one is added in one file and one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from toy_env import ToyFamily

import chunkrl
from chunkrl.cli import main
from chunkrl.data.frames import FrameTable
from chunkrl.envs import registry
from chunkrl.envs.gym_hil_family import GymHilFamily
from chunkrl.errors import ChunkRLError

SOURCES = Path(chunkrl.__file__).parent


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", [ToyFamily(), *registry.FAMILIES])  # the one line


def test_a_simulator_is_one_file_and_one_line(
    toy: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From data to an actor: collect, train, evaluate, act."""
    data, run = tmp_path / "data", tmp_path / "run"
    main(
        [
            "collect",
            "--env",
            "toy/line",
            "--num-episodes",
            "12",
            "--output-dir",
            str(data),
            "--num-workers",
            "0",
        ]
    )
    table = FrameTable.open(data)
    assert table.num_episodes == 12 and table.description.cameras == ()
    flags = "--action-horizon 2 --batch-size 16 --num-updates 150 --objective behaviour_cloning --device cpu"
    main(["train", "--dataset-dir", str(data), "--output-dir", str(run), "--action-dim", "1", *flags.split()])
    capsys.readouterr()
    evaluation = tmp_path / "evaluation"
    given = [
        "--env",
        "toy/line",
        "--num-episodes",
        "10",
        "--num-workers",
        "0",
        "--output-dir",
        str(evaluation),
    ]
    main(["evaluate", "--policy", str(run / "policy"), *given, "--videos", "0"])
    result = json.loads((evaluation / "result.json").read_text())
    assert "toy/line" in str(result)
    acted = tmp_path / "acted"
    main(
        [
            *("actor", "--policy", str(run / "policy"), "--env", "toy/line", "--offline"),
            *("--num-episodes", "2", "--output-dir", str(acted)),
        ]
    )
    assert FrameTable.open(acted / "data" / "shard-000000").num_episodes == 2


def test_what_a_simulator_does_not_have_is_said(toy: None) -> None:
    family = registry.family_of("toy/line")
    env = family.make("toy/line", registry.EnvOptions())
    assert family.correction(env) is None and family.goals(env) is None
    with pytest.raises(ChunkRLError, match="toy/line has no scripted expert"):
        GymHilFamily().expert(env)
    with pytest.raises(ChunkRLError, match="--rendering fast is of LIBERO, and Toy draws in one way"):
        registry.check_rendering(["toy/line"], "fast")
    with pytest.raises(ChunkRLError, match="tasks of different simulators"):
        registry.describe(["toy/line", "push-v3"])
    with pytest.raises(ChunkRLError, match=r"no task 'nothing'.*Toy: toy/line.*LIBERO: libero_spatial"):
        registry.expand(["nothing"])


def test_nobody_else_compares_a_simulators_name() -> None:
    compared = re.compile(
        r"is_libero|is_hil|startswith\(\"(libero|gym_hil|metaworld)|\.kind == \"(LIBERO|MetaWorld)"
    )
    found = [
        f"{path.relative_to(SOURCES)}:{number}: {line.strip()}"
        for path in SOURCES.rglob("*.py")
        if not path.name.endswith("_family.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if compared.search(line) and "robot_type" not in line  # of data, which says what recorded it
    ]
    assert not found, found
