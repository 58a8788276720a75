"""`chunkrl push` and `chunkrl pull`, against a small Hub on this machine."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from chunk_data import image_episodes, random_episodes, settings, write_dataset
from evaluations import SETTINGS, evaluation
from hub_server import Hub, point_at, served
from lerobot_folder import write_lerobot_folder
from pi_tiny import tiny_policy

import chunkrl
from chunkrl import ChunkLevelOfflineRL, Observation
from chunkrl.cli import main
from chunkrl.data.formats import describe
from chunkrl.evaluation.evaluation_result import write_evaluation
from chunkrl.integration.chunk_cache import fingerprint
from chunkrl.manifest import MANIFEST_FILE, write_manifest
from chunkrl.models.pi.checkpoint import RECIPE_FILE, load_pretrained, save_pretrained
from chunkrl.progress import silent

TO = ["--repo-id", "owner/name", "--licence", "apache-2.0"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with served(Hub({}, exists=False)) as found:
        point_at(found, tmp_path / "hub-cache", monkeypatch)
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `d` and a run `run` on it."""
    root = tmp_path_factory.mktemp("made")
    data = write_dataset(root / "d", random_episodes(6), tasks=("push | the `cup`",))
    ChunkLevelOfflineRL(**settings(data, root / "run")).train()
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run of its own, whose files a test may change."""
    return shutil.copytree(made / "run", tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(list(arguments))
    return capsys.readouterr().err


def test_a_policy_goes_to_the_hub_and_back(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["push", str(run), *TO, "--yes"])
    told = capsys.readouterr().out
    assert f"{run / 'policy'} -> hf://owner/name, model, private, licence apache-2.0" in told
    assert "7 files" in told and "chunkrl pull owner/name fetches it" in told
    assert hub.private and len(hub.commits) == 1
    assert {
        name: data for name, data in hub.content.items() if name not in ("README.md", ".gitattributes")
    } == (files(run / "policy"))
    main(["pull", "owner/name"])
    assert "small policy, as it was written (6 files)" in capsys.readouterr().out
    there = files(Path("name"))
    assert {name: there[name] for name in files(run / "policy")} == files(run / "policy")
    assert there["README.md"] == hub.content["README.md"]
    state = Observation({}, torch.arange(6.0).reshape(2, 3))
    ours, theirs = (chunkrl.load_policy(folder).act(state) for folder in (run / "policy", "name"))
    assert torch.equal(ours, theirs)
    cached = huggingface_hub.snapshot_download("owner/name")  # as LeRobot fetches it: links into a cache
    assert torch.equal(chunkrl.load_policy(cached).act(state), ours)
    main(["push", str(run), *TO])  # nothing to ask: nothing is sent
    assert "all of it is already there" in capsys.readouterr().out and len(hub.commits) == 1


@pytest.mark.parametrize("kind", ["states", "images", "v2.1 videos", "v3.0 videos"])
def test_a_data_set_goes_to_the_hub_and_back(
    hub: Hub, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, version = tmp_path / "d", "v2.1" if kind.startswith("v2.1") else "v3.0"
    if kind.endswith("videos"):
        write_lerobot_folder(data, version, camera="video")
    else:
        write_dataset(data, image_episodes(4) if kind == "images" else random_episodes(5))
    (data / "notes.txt").write_text("mine")
    (data / ".writer.lock").touch()
    main(["push", str(data), *TO, "--yes", "--public"])
    assert "not pushed: .writer.lock, notes.txt" in capsys.readouterr().out
    assert (hub.kind, hub.private, hub.tags) == ("dataset", False, {version: hub.commit})
    assert any(name.endswith(".mp4") for name in hub.content) == kind.endswith("videos")
    main(["pull", "owner/name", "--what", "dataset", "--output-dir", "back"])
    assert "data set of" in capsys.readouterr().out
    assert describe("back").fingerprint == describe(data).fingerprint
    pushed = {
        name: content for name, content in files(data).items() if name not in (".writer.lock", "notes.txt")
    }
    assert {name: files(Path("back"))[name] for name in pushed} == pushed
    assert hub.content["README.md"].startswith(b"---\nlicense: apache-2.0")


@pytest.mark.parametrize("native", [False, True])
def test_a_pi_policy_goes_to_the_hub_and_back(
    hub: Hub, tmp_path: Path, native: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that chunkrl did not write: it is fetched, and loads where it says its settings."""
    save_pretrained(tiny_policy("pi05"), tmp_path / "p")
    main(["push", str(tmp_path / "p"), *TO, "--yes"])
    card = hub.content["README.md"].decode()
    assert "prompt format: pi05\\_state" in card and "Stock LeRobot runs it otherwise" in card
    if native:
        del hub.content[RECIPE_FILE], hub.content[MANIFEST_FILE]
    main(["pull", "owner/name", "--output-dir", "back"])
    told = capsys.readouterr().out
    assert ("pi policy that chunkrl did not write" if native else "pi policy, as it was written") in told
    if not native:
        ours, theirs = (load_pretrained(folder) for folder in (tmp_path / "p", "back"))
        for name, tensor in ours.model.state_dict().items():
            assert torch.equal(tensor, theirs.model.state_dict()[name])


def test_a_dry_run_asks_the_hub_nothing(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    main(["push", str(run), *TO, "--dry-run"])
    told = capsys.readouterr().out
    assert "state.safetensors" in told and "license: apache-2.0" in told and "nothing was sent" in told
    assert hub.asked == []


@pytest.mark.parametrize("answer", [None, "", "n", "yes"])
def test_it_asks_before_it_sends(
    hub: Hub,
    run: Path,
    answer: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("" if answer is None else f"{answer}\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer is not None)
    if answer == "yes":
        main(["push", str(run), *TO])
        assert len(hub.commits) == 1
    else:
        told = refused(capsys, "push", str(run), *TO)
        assert "nothing was sent" in told and ("--yes" in told) == (answer is None)
        assert not hub.exists and {method for method, _ in hub.asked} == {"GET"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--repo-id", "owner/name"], "--licence is missing: nobody may use what has none"),
        (["--repo-id", "owner/name", "--licence", "My Own"], "--licence is 'My Own'"),
        (["--licence", "mit"], "--repo-id is missing"),
        (["--licence", "mit", "--repo-id", "name"], "a repository is account/name"),
        (["--licence", "mit", "--repo-id", "o/a--b", "--dry-run"], "--repo-id is 'o/a--b'"),
        ([*TO, "--what", "dataset"], "it has no meta/info.json"),
        ([*TO, "--evaluation", "nowhere"], "does not exist"),
    ],
)
def test_settings_are_looked_at_first(
    hub: Hub, run: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "push", str(run), *more, "--yes")
    assert hub.asked == []


def test_offline_and_without_a_token(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "none")
    assert "hf auth login" in refused(capsys, "push", str(run), *TO, "--yes")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, "push", str(run), *TO, "--yes")
    assert "unset HF_HUB_OFFLINE to fetch it" in refused(capsys, "pull", "owner/name")
    assert hub.asked == []


def test_a_folder_that_is_not_whole_is_not_pushed(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "policy/state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert "has changed since it was written" in refused(capsys, "push", str(run), *TO, "--yes")
    (run / "policy" / MANIFEST_FILE).unlink()
    assert f"has no {MANIFEST_FILE}" in refused(capsys, "push", str(run), *TO, "--yes")
    shutil.rmtree(run / "policy")
    assert "has no policy yet" in refused(capsys, "push", str(run), *TO, "--yes")
    assert "is no folder" in refused(capsys, "push", "nowhere", *TO, "--yes")
    assert hub.asked == []


def test_paths_of_this_machine_stay_here(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "policy/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "made_in": str(tmp_path / "secret")}))
    write_manifest(run / "policy")
    told = refused(capsys, "push", str(run), *TO, "--yes")
    assert f"says '{tmp_path}/secret', a path of this machine" in told and hub.asked == []
    config.write_text(json.dumps({**json.loads(config.read_text()), "made_in": "/nowhere-here/secret"}))
    write_manifest(run / "policy")
    main(["push", str(run), *TO, "--yes"])
    assert str(tmp_path) not in hub.content["README.md"].decode()


def test_what_stands_there_is_replaced_only_when_asked(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.exists, hub.private = True, True
    hub.content |= {"README.md": b"somebody's", "other.bin": b"x"}
    told = refused(capsys, "push", str(run), *TO, "--yes")
    assert "holds something else (README.md, other.bin)" in told and "--overwrite" in told
    main(["push", str(run), *TO, "--yes", "--revision", "mine"])
    assert hub.content.keys() == {"README.md", "other.bin"}
    assert "other.bin" not in hub.branches["mine"] and "state.json" in hub.branches["mine"]
    main(["push", str(run), *TO, "--yes", "--overwrite"])
    assert "other.bin" not in hub.content and hub.content["README.md"].startswith(b"---\nlicense")


def test_a_run_whose_data_are_gone(
    hub: Hub, made: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.json"
    config.write_text(config.read_text().replace(str(made / "d"), str(tmp_path / "gone")))
    assert "--without-run" in refused(capsys, "push", str(run), *TO, "--yes")
    main(["push", str(run), *TO, "--yes", "--without-run"])
    assert b"nothing is said of its data and its training" in hub.content["README.md"]


def test_evaluations_of_other_policies_are_not_its_own(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = fingerprint((run / "policy",), silent)
    for name, of in (("mine", own), ("other", "g")):
        found = evaluation((1, 1, 0, 1), (0, 1, 1, 1), settings=replace(SETTINGS, fingerprint=of))
        write_evaluation(tmp_path / "e" / name, found)
    told = refused(capsys, "push", str(run), *TO, "--yes", "--evaluation", "e/other")
    assert "none is of this policy" in told and hub.asked == []
    told = refused(capsys, "push", str(run), *TO, "--yes", "--evaluation", "e/mine", "mine=e/other")
    assert "both named mine" in told
    main(["push", str(run), *TO, "--yes", "--evaluation", "e/other", "e/mine"])
    card = hub.content["README.md"].decode()
    assert '"mine" is this policy' in card and "| push-v3 | mine | 3 | 4 | 75 % |" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("damage", ["changed", "lost"])
def test_what_was_pushed_damaged_is_no_policy(
    hub: Hub, run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["push", str(run), *TO, "--yes"])
    if damage == "lost":
        del hub.content["state.json"]
    else:
        hub.content["state.safetensors"] = b"?" + hub.content["state.safetensors"][1:]
    capsys.readouterr()
    assert "state." in refused(capsys, "pull", "owner/name")


def test_pull_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "chunkrl pull account/name" in refused(capsys, "pull")
    assert "a Hub repository is owner/name" in refused(capsys, "pull", "name")
