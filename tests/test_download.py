"""Downloads: the code that fetches from Google Cloud Storage and the Hub, on folders and an in-memory server."""

import base64
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkrl.cli import main
from chunkrl.install import MissingExtraError
from chunkrl.integration import remote, transfer
from chunkrl.integration.remote import DownloadError, RemoteTree, list_tree
from chunkrl.integration.transfer import MANIFEST, fetch_tree, missing_bytes
from chunkrl.progress import silent

CONTENT = {
    "params/_METADATA": b"{}",
    "params/d/0a1b": bytes(range(256)) * 40,
    "params/empty": b"",
    "assets/physical-intelligence/libero/norm_stats.json": b'{"norm_stats": {}}',
}
SIZE = sum(map(len, CONTENT.values()))


class Bucket(MemoryFileSystem):
    """In memory, with checksums as Google Cloud Storage gives them; counts what is read."""

    protocol = "bucket"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's memory file system declares it so
    pseudo_dirs = [""]  # noqa: RUF012
    declared = "md5Hash"
    read: list[tuple[str, int, int]] = []  # noqa: RUF012
    damage = ""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.removeprefix("bucket://"))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found = super().info(path, **options)
        if found["type"] == "file" and self.declared:
            data = self.store[found["name"]].getvalue()
            if self.declared == "md5Hash":
                value = hashlib.md5(data, usedforsecurity=False).digest()
            else:
                value = pytest.importorskip("google_crc32c").Checksum(data).digest()
            found[self.declared] = base64.b64encode(value).decode()
        return found

    def find(
        self, path: str, maxdepth: Any = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        return {name: self.info(name) for name in super().find(path)}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        self.read.append((path, start, end))
        data = super().cat_file(path, start, end, **options)
        return b"?" + data[1:] if self.damage and path.endswith(self.damage) else data


fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    monkeypatch.setattr(remote, "RANGE_BYTES", 1000)
    monkeypatch.setattr(transfer, "RANGE_BYTES", 1000)
    for name, value in (("declared", "md5Hash"), ("damage", ""), ("read", [])):
        monkeypatch.setattr(Bucket, name, value)
    Bucket.store.clear()
    for name, data in CONTENT.items():
        Bucket().pipe(f"/openpi/checkpoints/pi05_libero/{name}", data)
        Bucket().pipe(f"/openpi/checkpoints/pi0_base/{name}", data)
    Bucket().pipe("/vision/paligemma_tokenizer.model", b"pieces")
    yield Bucket
    Bucket.store.clear()


def tree() -> RemoteTree:
    return list_tree("bucket://openpi/checkpoints/pi05_libero")


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder but the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("checksum", ["md5Hash", "crc32c", ""])
def test_a_tree_arrives_whole(bucket: type[Bucket], tmp_path: Path, checksum: str) -> None:
    bucket.declared = checksum
    shown: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        shown.append((done, total))

    assert fetch_tree(tree(), tmp_path / "new" / "p", progress)
    assert content(tmp_path / "new" / "p") == CONTENT
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) in (["p"], [".p.lock", "p"])
    assert shown[-1] == (1, 1)
    assert all(done <= total for done, total in shown)
    # again: nothing is read
    bucket.read.clear()
    assert not fetch_tree(tree(), tmp_path / "new" / "p", silent)
    assert bucket.read == []


def test_a_local_folder_is_a_source_too(tmp_path: Path) -> None:
    for name, data in CONTENT.items():
        (tmp_path / "server" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "server" / name).write_bytes(data)
    found = list_tree((tmp_path / "server").as_uri())
    assert found.size == SIZE
    assert {file.name for file in found.files} == set(CONTENT)
    fetch_tree(found, tmp_path / "copy", silent)
    assert content(tmp_path / "copy") == CONTENT


@given(
    st.dictionaries(st.sampled_from(["a", "b/c", "b/d.part", "e f"]), st.binary(max_size=60), min_size=1),
    st.data(),
)
@settings(max_examples=40)
def test_any_interrupted_state_is_completed(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    """Each file absent, begun or whole in the partial folder: afterwards all are the server's."""
    root = tmp_path_factory.mktemp("any")
    for name, value in files.items():
        (root / "server" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "server" / name).write_bytes(value)
    listed = list_tree((root / "server").as_uri())
    whole = root / "whole"
    fetch_tree(listed, whole, silent)
    partial = root / ".copy.partial"
    partial.mkdir()
    shutil.copy(whole / MANIFEST, partial)
    for name, value in files.items():
        state = data.draw(st.sampled_from(["absent", "begun", "whole"]))
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        if state == "begun":
            (partial / (name + ".part")).write_bytes(value[: data.draw(st.integers(0, len(value)))])
        elif state == "whole":
            (partial / name).write_bytes(value)
    fetch_tree(listed, root / "copy", silent)
    assert content(root / "copy") == files


KILLED = """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
from pathlib import Path
import fsspec
from fsspec.implementations.local import LocalFileSystem
from chunkrl.integration import remote, transfer
from chunkrl.progress import silent

remote.RANGE_BYTES = transfer.RANGE_BYTES = 1000
count = 0

class Dying(LocalFileSystem):
    def cat_file(self, path, start=None, end=None, **options):
        global count
        count += 1
        if count == 8:
            os._exit(9)
        return super().cat_file(path, start, end, **options)

tree = remote.list_tree(sys.argv[1])
transfer.fetch_tree(remote.RemoteTree(tree.url, Dying(), tree.files), Path(sys.argv[2]), silent)
"""


def test_kill_in_the_middle_then_resume(
    tmp_path: Path, bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "server"
    for name, data in CONTENT.items():
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).write_bytes(data)
    target = tmp_path / "copy"
    environment = {**os.environ, "TESTS": str(Path(__file__).parent)}
    command = [sys.executable, "-c", KILLED, server.as_uri(), str(target)]
    assert subprocess.run(command, check=False, timeout=120, env=environment).returncode == 9
    assert not target.exists()
    found = list_tree(server.as_uri())
    left = missing_bytes(target, found)
    assert 0 < left < SIZE
    asked = []
    original = type(found.filesystem).cat_file

    def counted(self: Any, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        asked.append(end - start)
        return original(self, path, start, end, **options)

    monkeypatch.setattr(type(found.filesystem), "cat_file", counted)
    fetch_tree(found, target, silent)
    assert sum(asked) == left
    assert content(target) == CONTENT


def test_a_corrupted_byte_in_transit(bucket: type[Bucket], tmp_path: Path) -> None:
    bucket.damage = "0a1b"
    with pytest.raises(DownloadError, match=r"0a1b arrived damaged \(md5 .*run the same command again"):
        fetch_tree(tree(), tmp_path / "p", silent)
    assert not (tmp_path / "p").exists()
    bucket.damage = ""
    fetch_tree(tree(), tmp_path / "p", silent)
    assert content(tmp_path / "p") == CONTENT


def test_a_corrupted_byte_in_what_an_interruption_left(bucket: type[Bucket], tmp_path: Path) -> None:
    bucket.damage = "libero/norm_stats.json"  # assets come first: the rest is not begun
    with pytest.raises(DownloadError):
        fetch_tree(tree(), tmp_path / "p", silent)
    bucket.damage = ""
    part = tmp_path / ".p.partial" / "params" / "d" / "0a1b.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\xff" * 500)
    with pytest.raises(DownloadError, match="0a1b arrived damaged"):
        fetch_tree(tree(), tmp_path / "p", silent)
    assert not part.exists()
    fetch_tree(tree(), tmp_path / "p", silent)
    assert content(tmp_path / "p") == CONTENT


def test_files_that_changed_on_the_server_are_fetched_anew(bucket: type[Bucket], tmp_path: Path) -> None:
    bucket.damage = "0a1b"
    with pytest.raises(DownloadError):
        fetch_tree(tree(), tmp_path / "p", silent)
    bucket.damage = ""
    name = "assets/physical-intelligence/libero/norm_stats.json"
    assert (tmp_path / ".p.partial" / name).is_file()
    changed = b'{"norm_stats": []}'  # as long as before
    Bucket().pipe(f"/openpi/checkpoints/pi05_libero/{name}", changed)
    fetch_tree(tree(), tmp_path / "p", silent)
    assert content(tmp_path / "p") == CONTENT | {name: changed}


def test_what_was_complete_and_changed_is_not_taken_for_whole(bucket: type[Bucket], tmp_path: Path) -> None:
    fetch_tree(tree(), tmp_path / "p", silent)
    (tmp_path / "p" / "params" / "_METADATA").write_bytes(b"{")
    with pytest.raises(DownloadError, match=r"not a whole copy of bucket://.*move it away"):
        fetch_tree(tree(), tmp_path / "p", silent)


def test_a_folder_of_somebody_else_stays(bucket: type[Bucket], tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.txt").write_text("mine")
    with pytest.raises(DownloadError, match="another --download-dir"):
        fetch_tree(tree(), tmp_path / "p", silent)
    assert content(tmp_path / "p") == {"thesis.txt": b"mine"}


def test_too_little_space_is_found_first(
    bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - SIZE + 1, SIZE - 1))
    with pytest.raises(DownloadError, match=r"GB more and .* free"):
        fetch_tree(tree(), tmp_path / "p", silent)
    assert bucket.read == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - SIZE, SIZE))
    assert fetch_tree(tree(), tmp_path / "p", silent)


def test_a_disk_that_fills_up_on_the_way(bucket: type[Bucket], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(DownloadError, match=r"cannot be written.*goes on from there"):
            fetch_tree(tree(), tmp_path / "p", silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "p").exists()
    assert missing_bytes(tmp_path / "p", tree()) < SIZE
    fetch_tree(tree(), tmp_path / "p", silent)
    assert content(tmp_path / "p") == CONTENT


BOTH = """
import sys
from pathlib import Path
from chunkrl.integration import remote, transfer
from chunkrl.progress import silent
remote.RANGE_BYTES = transfer.RANGE_BYTES = 100
input()
print(transfer.fetch_tree(remote.list_tree(sys.argv[1]), Path(sys.argv[2]), silent))
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    server = tmp_path / "server"
    server.mkdir()
    (server / "weights").write_bytes(bytes(range(250)) * 4000)
    command = [sys.executable, "-c", BOTH, server.as_uri(), str(tmp_path / "copy")]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:  # both are there before either begins
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    fetched = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert fetched == ["False", "True"]  # one fetched, the other waited and found it
    assert content(tmp_path / "copy") == content(server)


@pytest.mark.parametrize("name", ["../outside", "/elsewhere"])
def test_names_outside_the_tree(monkeypatch: pytest.MonkeyPatch, bucket: type[Bucket], name: str) -> None:
    path = name if name.startswith("/") else f"/openpi/checkpoints/pi05_libero/{name}"
    found = {path: {"type": "file", "size": 1, "name": path}}
    monkeypatch.setattr(Bucket, "find", lambda *_, **__: found)
    with pytest.raises(DownloadError, match="not inside; nothing is fetched"):
        tree()


def test_names_that_are_not_there(bucket: type[Bucket]) -> None:
    with pytest.raises(DownloadError, match="nothing at bucket://openpi/checkpoints/pi9"):
        list_tree("bucket://openpi/checkpoints/pi9")
    with pytest.raises(DownloadError, match=r"fsspec URL"):
        list_tree("carrier-pigeon://x")


def test_a_server_that_sends_too_little(
    bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tree()
    monkeypatch.setattr(Bucket, "cat_file", lambda *_, **__: b"x")
    with pytest.raises(DownloadError, match=r"sent 1 of \d+ bytes"):
        fetch_tree(listed, tmp_path / "p", silent)


def test_a_connection_that_breaks(
    bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> bytes:
        raise ConnectionResetError("by peer")

    listed = tree()
    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "cat_file", broken)
        with pytest.raises(DownloadError, match=r"ConnectionResetError: by peer.*goes on from"):
            fetch_tree(listed, tmp_path / "p", silent)
    assert fetch_tree(listed, tmp_path / "p", silent)


def test_google_cloud_storage_is_asked_anonymously() -> None:
    pytest.importorskip("gcsfs", reason="Google Cloud Storage needs chunkrl[gcs]")
    filesystem, path = remote.open_filesystem("gs://openpi-assets/checkpoints")
    assert path == "openpi-assets/checkpoints"
    assert filesystem.storage_options == {"token": "anon"}


def test_gcsfs_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcsfs", "gcsfs.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[gcs\]'"):
        list_tree("gs://openpi-assets/checkpoints/pi0_base")


# ---- the command


@pytest.fixture
def command(bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHUNKRL_CACHE", str(tmp_path / "cache"))
    tokenizer = "bucket://vision/paligemma_tokenizer.model"
    return ["download", "--source", "bucket://openpi/checkpoints", "--tokenizer-source", tokenizer]


def test_the_documents_and_the_short_form(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from chunkrl.models.pi import find_recipe
    from chunkrl.models.pi.config import pi05_libero
    from chunkrl.models.pi.tokenizer import find_tokenizer

    main([*command, "--checkpoints", "pi0_base"])
    main([*command, "pi05_libero"])
    shown = capsys.readouterr().out
    assert "checkpoints/pi0/pi0_base: " in shown
    assert content(tmp_path / "checkpoints/pi0/pi0_base") == CONTENT
    folder = tmp_path / "checkpoints/pi0/pi05_libero"
    assert find_recipe(folder) == pi05_libero()  # its name says what openpi's folder does not
    assert find_tokenizer(None, folder).read_bytes() == b"pieces"
    main([*command, "pi05_libero", "--download-dir", "checkpoints/pi0"])
    assert "already there" in capsys.readouterr().out


def test_all_looks_before_it_fetches(
    command: list[str], tmp_path: Path, bucket: type[Bucket], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--checkpoints", "all"])
    assert stop.value.code == 2
    assert "nothing at bucket://openpi/checkpoints/pi0_libero" in capsys.readouterr().err
    assert bucket.read == []
    for name, data in CONTENT.items():
        for checkpoint in ("pi0_libero", "pi05_base"):
            bucket().pipe(f"/openpi/checkpoints/{checkpoint}/{name}", data)
    main([*command, "all"])
    folders = {
        path.name for path in (tmp_path / "checkpoints/pi0").iterdir() if not path.name.startswith(".")
    }
    assert folders == {"pi0_libero", "pi0_base", "pi05_libero", "pi05_base"}


def test_hub_checksums() -> None:
    assert remote._checksum({"lfs": {"sha256": "ab"}, "blob_id": "c"}) == "sha256:ab"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to download: pi0_libero"),
        (["--repo-id", "rlvla"], "owner/name"),
        (["pi0_base", "--repo-id", "a/b"], "one at a time"),
        (
            ["tokenizer", "--tokenizer-source", "bucket://openpi/checkpoints"],
            "is not a file paligemma_tokenizer",
        ),
    ],
)
def test_orders_that_make_no_sense(
    command: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
