"""Files sent to a small Hub on this machine: whole or not at all, once, and only where they may be seen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import TOKEN, Hub, point_at, served

from chunkrl.integration.upload import (
    Destination,
    Upload,
    UploadError,
    check_access,
    check_name,
    look,
    send,
    tag,
)
from chunkrl.progress import silent

TO = Destination("owner/name", "model")
LARGE_A, LARGE_B = bytes(range(256)) * 40, bytes(reversed(range(256))) * 40
CONTENT = {"a.safetensors": LARGE_A, "below/b.safetensors": LARGE_B, "config.json": b"{}", "empty": b""}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with served(Hub({}, exists=False)) as found:
        point_at(found, tmp_path / "hub-cache", monkeypatch)
        yield found


@pytest.fixture
def files(tmp_path: Path) -> list[Upload]:
    for name, data in CONTENT.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(data)
    return [*(Upload(name, tmp_path / "p" / name) for name in CONTENT), Upload("README.md", b"# card")]


def push(to: Destination, files: list[Upload]) -> str:
    return send(to, files, look(to, files), "Pushed", silent)


def contents(files: list[Upload]) -> dict[str, bytes]:
    return {f.name: f.source if isinstance(f.source, bytes) else f.source.read_bytes() for f in files}


def puts(hub: Hub) -> int:
    return sum(method == "PUT" for method, _ in hub.asked)


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_new_repository_gets_all_files_in_one_commit(
    hub: Hub, files: list[Upload], kind: str, public: bool
) -> None:
    to = Destination("owner/name", "dataset" if kind == "dataset" else "model", public=public)
    commit = push(to, files)
    assert (hub.kind, hub.private, hub.commits) == (kind, not public, [("main", len(files))])
    assert {name: data for name, data in hub.content.items() if name != ".gitattributes"} == contents(files)
    assert commit == hub.commit and puts(hub) == 2
    found = look(to, files)
    assert set(found.same) == {file.name for file in files} and found.other == found.foreign == ()


def test_a_commit_replaces_what_stood_there(hub: Hub, files: list[Upload]) -> None:
    push(TO, files)
    newer = [Upload("config.json", b'{"newer": 1}'), *files[:1], Upload("new", b"x")]
    found = look(TO, newer)
    assert (found.same, found.other) == (("a.safetensors",), ("config.json",))
    assert found.foreign == ("README.md", "below/b.safetensors", "empty")
    send(TO, newer, found, "Newer", silent)
    assert hub.content.keys() == {".gitattributes", "config.json", "a.safetensors", "new"}
    assert hub.content["config.json"] == b'{"newer": 1}' and puts(hub) == 2


def test_a_branch_is_made_and_main_stays(hub: Hub, files: list[Upload]) -> None:
    push(TO, files)
    before, to = dict(hub.content), replace(TO, branch="try")
    assert not look(to, files).has_branch
    push(to, [Upload("config.json", b"other")])
    assert hub.content == before
    assert hub.branches["try"].keys() == {".gitattributes", "config.json"}
    push(to, files)
    assert {k: v for k, v in hub.branches["try"].items() if k != ".gitattributes"} == contents(files)


def test_a_tag_moves(hub: Hub, files: list[Upload]) -> None:
    for content in (files, files[:1]):
        commit = push(TO, content)
        tag(TO, "v3.0", commit)
        assert hub.tags == {"v3.0": commit}


def test_a_killed_push_is_taken_up_again(hub: Hub, files: list[Upload], tmp_path: Path) -> None:
    """The first large file had arrived: it is not sent again, and nothing stood there meanwhile."""
    hub.hold = 1
    code = f"""
from chunkrl.integration.upload import Destination, Upload, look, send
from chunkrl.progress import silent
from pathlib import Path
to = Destination("owner/name", "model")
files = [Upload(name, Path({str(tmp_path / "p")!r}) / name) for name in {list(CONTENT)!r}]
files.append(Upload("README.md", b"# card"))
send(to, files, look(to, files), "Pushed", silent)
"""
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment})
    assert hub.held.wait(120)
    process.kill()
    process.wait()
    assert hub.content.keys() == {".gitattributes"} and len(hub.stored) == 1
    (kept,), hub.hold = hub.stored, None
    hub.go_on.set()
    hub.asked.clear()
    push(TO, files)
    sent = [path for method, path in hub.asked if method == "PUT"]
    assert len(sent) == 1 and f"/lfs/{kept}" not in sent
    assert {k: v for k, v in hub.content.items() if k != ".gitattributes"} == contents(files)
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("rule", "status", "told"),
    [
        ("GET /api/models", 401, "hf auth login"),
        ("POST /api/repos/create", 401, r"does not take the token.*hf auth login"),
        ("POST /api/repos/create", 403, "may not write there"),
        ("POST /api/repos/create", 409, "the token may not see it"),
        ("preupload", 403, "may not write there"),
        ("objects/batch", 507, "no room"),
        ("PUT /lfs", 507, "no room"),
        ("/commit/", 412, "changed it meanwhile"),
        ("/commit/", 413, "of this size"),
        ("/commit/", 429, "asks for a pause"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, files: list[Upload], rule: str, status: int, told: str) -> None:
    hub.fail[rule] = status
    with pytest.raises(UploadError, match=f"hf://owner/name: the push has ended .*{told}"):
        push(TO, files)
    assert hub.commits == []
    hub.fail.clear()
    push(TO, files)
    assert len(hub.commits) == 1


def test_somebody_else_pushes_meanwhile(hub: Hub, files: list[Upload]) -> None:
    push(TO, files)
    newer = [Upload("config.json", b"newer")]
    found = look(TO, newer)
    push(TO, files[:2])
    before = dict(hub.content)
    with pytest.raises(UploadError, match="run the same command again"):
        send(TO, newer, found, "Newer", silent)
    assert hub.content == before


def test_who_may_see_it_is_not_changed_in_silence(hub: Hub, files: list[Upload]) -> None:
    push(TO, files)
    with pytest.raises(UploadError, match="is private, and --public does not change that"):
        look(replace(TO, public=True), files)
    hub.private = False
    with pytest.raises(UploadError, match="is public, so that everybody would see"):
        look(TO, files)


def test_what_arrives_otherwise_is_an_error(
    hub: Hub, files: list[Upload], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "apply", lambda hub, branch, lines: hub.content.update({"config.json": b"?"}))
    with pytest.raises(UploadError, match=r"README.md, a.safetensors.* did not arrive as sent"):
        push(TO, files)


@pytest.mark.parametrize("name", ["name", "a/b/c", "o/-n", "o/a b", "o/a..b", "o/" + "x" * 100, ""])
def test_names_of_repositories(hub: Hub, name: str) -> None:
    with pytest.raises(UploadError, match="--repo-id is"):
        check_name(name)
    assert hub.asked == []


def test_offline_and_without_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_access("owner/name")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UploadError, match=r"no token .*hf auth login.*HF_TOKEN"):
        check_access("owner/name")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE is set"):
        check_access("owner/name")
    assert hub.asked == []


def test_a_card_that_the_hub_does_not_take(hub: Hub, files: list[Upload]) -> None:
    hub.yaml_errors = ('"license" must be one of [apache-2.0, mit]',)
    with pytest.raises(UploadError, match=r'no commit was made.*"license" must be one of'):
        push(TO, files)
    assert hub.commits == []
