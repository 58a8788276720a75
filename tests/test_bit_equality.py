"""Every objective and kind of policy gives what it gave when its digest was recorded (tests/bit_equality.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bit_equality import RECORDED, combinations, digest, folders, machine


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return folders(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("objective", "kind"), list(combinations()))
def test_equal_to_the_bit(objective: str, kind: str, data: dict[str, Path], tmp_path: Path) -> None:
    own = json.loads(RECORDED.read_text()).get(machine())
    if own is None:
        pytest.skip(f"no digests of this machine ({machine()}): PYTHONPATH=tests:. python -m bit_equality")
    assert digest(objective, kind, data, tmp_path / "run") == own[f"{objective} {kind}"]
