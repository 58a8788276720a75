"""`chunkrl download --repo-id`: the library fetches from a small Hub on this machine, and what is added to it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import Hub, point_at, served

from chunkrl.cli import main
from chunkrl.integration import download as command_module
from chunkrl.integration import hub as hub_module
from chunkrl.integration.hub import HubTree, list_repository
from chunkrl.integration.remote import DownloadError
from chunkrl.integration.transfer import MANIFEST, fetch_tree, missing_bytes
from chunkrl.progress import silent

CONTENT = {
    "model.safetensors": bytes(range(256)) * 40,
    "config.json": b'{"type": "pi05"}',
    "assets/norm [1].json": b"{}",
    "empty": b"",
    "optimizer.pt": bytes(2000),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with served(Hub(dict(CONTENT))) as found:
        point_at(found, tmp_path / "hub-cache", monkeypatch)
        yield found


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder but the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def tree() -> HubTree:
    return list_repository("owner/name", None)


@pytest.mark.parametrize("folder", [None, "elsewhere/p"])
def test_a_repository_arrives_whole(hub: Hub, folder: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    more = [] if folder is None else ["--download-dir", folder]
    order = ["download", "--repo-id", "owner/name", "--revision", "v1", *more]
    main(order)
    target = Path(folder or "checkpoints/pi0/name")
    assert content(target) == CONTENT
    assert {path.name for path in target.iterdir()} == {name.split("/")[0] for name in CONTENT} | {MANIFEST}
    assert ("GET", "/api/models/owner/name/revision/v1") in hub.asked
    sent = hub.served
    assert sent == sum(map(len, CONTENT.values()))
    main(order)
    assert "already there" in capsys.readouterr().out and hub.served == sent


def test_chosen_files(hub: Hub, tmp_path: Path) -> None:
    main(
        ["download", "--repo-id", "owner/name", "--include", "*.safetensors", "*.json", "--download-dir", "p"]
    )
    assert content(tmp_path / "p").keys() == {"model.safetensors", "config.json", "assets/norm [1].json"}
    assert not any("optimizer" in path for _, path in hub.asked)


@pytest.mark.parametrize(("name", "kind"), [("config.json", "git's sha1"), ("model.safetensors", "sha256")])
def test_a_damaged_file_is_deleted_and_the_others_stay(
    hub: Hub, tmp_path: Path, name: str, kind: str
) -> None:
    hub.damage = name
    with pytest.raises(DownloadError, match=rf"{name} arrived damaged \({kind} .*run the same command again"):
        fetch_tree(tree(), tmp_path / "p", silent)
    assert not (tmp_path / "p").exists()
    assert content(tmp_path / ".p.partial").keys() >= CONTENT.keys() - {name}
    hub.damage, before = "", hub.served
    fetch_tree(tree(), tmp_path / "p", silent)
    assert content(tmp_path / "p") == CONTENT
    assert hub.served - before == len(CONTENT[name])


def test_what_an_interruption_left_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.gone = "optimizer.pt"
    with pytest.raises(DownloadError, match=r"cannot be fetched .*goes on from what has arrived"):
        fetch_tree(tree(), tmp_path / "p", silent)
    hub.gone = ""
    there = content(tmp_path / ".p.partial")
    assert there["model.safetensors"] == CONTENT["model.safetensors"]
    stale = tmp_path / ".p.partial/.cache/huggingface/download/x.incomplete"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_bytes(b"begun by a killed process")
    left, before = missing_bytes(tmp_path / "p", tree()), hub.served
    fetch_tree(tree(), tmp_path / "p", silent)
    assert hub.served - before == left
    assert content(tmp_path / "p") == CONTENT


def test_a_new_commit_is_fetched_into_what_an_older_left(hub: Hub, tmp_path: Path) -> None:
    hub.gone = "optimizer.pt"
    with pytest.raises(DownloadError):
        fetch_tree(tree(), tmp_path / "p", silent)
    hub.gone, hub.commit = "", "1" * 40
    hub.content["config.json"] = b'{"type": "pi0"} '  # as long as before
    fetch_tree(tree(), tmp_path / "p", silent)
    assert content(tmp_path / "p") == hub.content


def test_a_folder_that_the_library_could_not_ask_about_is_not_whole(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """snapshot_download returns a folder that is there where the connection is lost."""
    monkeypatch.setattr(hub_module, "snapshot_download", lambda *_, **__: None)
    with pytest.raises(DownloadError, match="did not arrive"):
        fetch_tree(tree(), tmp_path / "p", silent)
    assert not (tmp_path / "p").exists()


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    order = ["download", "--repo-id", "owner/name"]
    for module in (huggingface_hub.constants, command_module):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit):
        main(order)
    assert "unset HF_HUB_OFFLINE to fetch it" in capsys.readouterr().err and hub.asked == []
    for module in (huggingface_hub.constants, command_module):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    main(order)
    hub.asked.clear()
    for module in (huggingface_hub.constants, command_module):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    main(order)
    assert "the Hub was not asked" in capsys.readouterr().out and hub.asked == []
    Path("checkpoints/pi0/name/model.safetensors").write_bytes(b"cut off")
    with pytest.raises(SystemExit):
        main(order)
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("repo", "revision", "told"),
    [("owner/other", None, "hf auth login"), ("owner/name", "v9", "check --revision")],
)
def test_what_is_not_there(hub: Hub, repo: str, revision: str | None, told: str) -> None:
    with pytest.raises(DownloadError, match=told):
        list_repository(repo, revision)


def test_nothing_that_the_patterns_name(hub: Hub) -> None:
    with pytest.raises(DownloadError, match=r"nothing at hf://owner/name that \*.bin names"):
        list_repository("owner/name", None, ("*.bin",))


def test_names_outside_the_folder(hub: Hub) -> None:
    hub.content["../outside"] = b"x"
    with pytest.raises(DownloadError, match="not inside; nothing is fetched"):
        tree()


def test_too_little_space_is_found_first(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 99, 99))
    with pytest.raises(DownloadError, match=r"GB more and .* free"):
        fetch_tree(tree(), tmp_path / "p", silent)
    assert hub.served == 0


def test_patterns_without_a_repository(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["download", "pi0_base", "--include", "*.json"])
    assert "--repo-id owner/name with it" in capsys.readouterr().err
