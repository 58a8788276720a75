"""`chunkrl collect` when simulator processes are killed or hang in the middle of an episode."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest
from collect_fakes import StoppedMaker

pytest.importorskip("metaworld", reason="needs the extra chunkrl[sim]")

from chunkrl.cli import main
from chunkrl.collect import command as collect
from chunkrl.errors import ChunkRLError


def arguments(root: Path, *more: str) -> list[str]:
    common = "--env push-v3+reach-v3 --max-steps 12 --seed 4 --state compact"
    return ["collect", *common.split(), "--output-dir", str(root), *more]


def files(root: Path) -> dict[str, bytes]:
    """Everything but the record, which counts what was lost."""
    found = {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if name != collect.RECORD}


def lost(root: Path) -> int:
    return json.loads((root / collect.RECORD).read_text())["simulators_lost"]


@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)], ids=["kill", "hang"]
)
def test_a_lost_simulator_costs_its_episode_alone(
    sent: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tmp_path / "whole", "--num-episodes", "4", "--num-workers", "0"))
    assert lost(tmp_path / "whole") == 0 and "were lost" not in capsys.readouterr().out
    root, maker = tmp_path / "disturbed", collect.EpisodeMaker
    monkeypatch.setattr(
        collect, "EpisodeMaker", partial(StoppedMaker, sent=sent, number=1, marker=tmp_path / "stopped")
    )
    hang_s = "25" if sent is signal.SIGSTOP else "600"
    main(arguments(root, "--num-episodes", "4", "--num-workers", "1", "--hang-s", hang_s))
    assert (tmp_path / "stopped").exists() and lost(root) == 1
    assert "were lost, and their episodes made again: 1\n" in capsys.readouterr().out
    assert files(root) == files(tmp_path / "whole")
    monkeypatch.setattr(collect, "EpisodeMaker", maker)
    main(
        arguments(root, "--num-episodes", "5", "--num-workers", "0")
    )  # the count continues from the data set
    assert lost(root) == 1


@pytest.mark.slow
def test_an_episode_that_loses_every_simulator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = partial(StoppedMaker, sent=signal.SIGKILL, number=0, marker=None)
    monkeypatch.setattr(collect, "EpisodeMaker", maker)
    config = collect.CollectConfig(max_steps=12, num_episodes=1, num_workers=1)
    with pytest.raises(
        ChunkRLError, match=r"(?s)episode 0 of push-v3: .*lost 3 times, at last: .*signal SIGKILL"
    ):
        list(collect.collect_episodes(config))
