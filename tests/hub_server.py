"""A small Hub on this machine, as `huggingface_hub` speaks to it: one repository in memory, over HTTP.

It speaks what the library uses without Xet (HF_HUB_DISABLE_XET): listing and fetching, creating, asking which files
are large, git-lfs, commits, branches and tags.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

LARGE = 1000  # bytes from which a file is stored as LFS, with a sha256
TOKEN = "hf_of_the_tests"
_NAME = r"owner/name"


@dataclass
class Hub:
    """content: file -> bytes of the one repository `owner/name`, on main. Counts and faults of the server.

    asked: (method, path) of every request. served: bytes of files that were sent. damage: a file whose first byte is
    sent wrong. gone: a file that is listed and not there. status: of every answer, where it is not 200.

    Of pushes: kind: model or dataset. exists, private: the repository. branches: others than main. tags: commits.
    stored: large contents by sha256. commits: (branch, number of operations). fail: "METHOD pattern of a path" ->
    status. yaml_errors: what it says against a card. hold: after so many contents were stored the next one waits for
    `go_on` and is lost; `held` says so.
    """

    content: dict[str, bytes]
    commit: str = "0" * 40
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    served: int = 0
    damage: str = ""
    gone: str = ""
    status: int = 200
    kind: str = "model"
    exists: bool = True
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, int]] = field(default_factory=list)
    fail: dict[str, int] = field(default_factory=dict)
    yaml_errors: tuple[str, ...] = ()
    hold: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def tree(self, revision: str) -> dict[str, bytes] | None:
        """The files at a branch or commit; None where there is none."""
        if revision in ("main", "v1", self.commit):
            return self.content
        return next(
            (tree for name, tree in self.branches.items() if revision in (name, self.head(name))), None
        )

    def head(self, branch: str) -> str:
        """The commit that a branch stands at."""
        if branch not in self.branches:
            return self.commit
        return hashlib.sha1(f"{branch} {len(self.commits)}".encode(), usedforsecurity=False).hexdigest()

    def entry(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if len(data) >= LARGE:
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return found

    def etag(self, name: str, data: bytes) -> str:
        entry = self.entry(name, data)
        return entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]

    def apply(self, branch: str, lines: list[dict[str, Any]]) -> None:
        """A commit's operations, on what stands on the branch."""
        tree = self.tree(branch)
        assert tree is not None
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        self.commits.append((branch, len(lines) - 1))
        if branch == "main":
            self.commit = f"{len(self.commits):040d}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.asked.append((self.command, path))
        faults = (status for rule, status in hub.fail.items() if re.search(rule, f"{self.command} {path}"))
        status = next(faults, hub.status)
        writes = self.command in ("POST", "DELETE")
        if status != 200:
            self._send(status, b"{}", {"X-Error-Message": "the server is ill"})
        elif writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif self.command in ("GET", "HEAD"):
            self._read(path)
        elif self.command == "PUT":
            self._store(path, sent)
        else:
            self._write(path, sent)

    def _read(self, path: str) -> None:
        hub = self.hub
        root = f"/api/{hub.kind}s/{_NAME}"
        files = f"/{'datasets/' if hub.kind == 'dataset' else ''}{_NAME}/resolve/{hub.commit}/"
        if not hub.exists or not path.startswith((root, files)):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        found = re.fullmatch(rf"{root}(?:/(revision|tree)/([^/]+))?", path)
        tree = hub.tree((found and found[2]) or "main")
        if found is None:
            self._file(path.removeprefix(files))
        elif tree is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif found[1] == "tree":
            self._told([hub.entry(name, data) for name, data in tree.items()])
        else:
            told = {"id": _NAME, "modelId": _NAME, "sha": hub.head(found[2] or "main"), "siblings": []}
            self._told(told | {"private": hub.private})

    def _write(self, path: str, sent: bytes) -> None:
        hub = self.hub
        root = f"/api/{hub.kind}s/{_NAME}"
        action, _, rest = path.removeprefix(f"{root}/").partition("/")
        if path == "/api/repos/create":
            self._create(json.loads(sent))
        elif path == "/api/validate-yaml":
            errors = [{"message": text} for text in hub.yaml_errors]
            self._send(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode(), {})
        elif path.endswith(f"{_NAME}.git/info/lfs/objects/batch"):
            self._told({"objects": [self._batch(item) for item in json.loads(sent)["objects"]]})
        elif action == "preupload":
            self._told({"files": [self._mode(rest, file) for file in json.loads(sent)["files"]]})
        elif action == "commit":
            lines = [json.loads(line) for line in sent.splitlines()]
            if lines[0]["value"].get("parentCommit", hub.head(rest)) != hub.head(rest):
                self._send(412, b"{}", {"X-Error-Message": "the branch has moved"})
                return
            hub.apply(rest, lines)
            self._told(
                {"commitUrl": f"{hub.url}/{_NAME}/commit/{hub.head(rest)}", "commitOid": hub.head(rest)}
            )
        elif action == "branch":
            hub.branches[rest] = dict(hub.content)
            self._told({})
        elif action == "tag" and self.command == "DELETE":
            known = hub.tags.pop(rest, None) is not None
            self._send(200 if known else 404, b"{}", {} if known else {"X-Error-Code": "RevisionNotFound"})
        elif action == "tag":
            hub.tags[json.loads(sent)["tag"]] = rest
            self._told({})
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _create(self, wanted: dict[str, Any]) -> None:
        hub = self.hub
        if hub.exists:
            self._send(409, b"{}", {"X-Error-Message": "You already created this repo"})
            return
        assert f"{wanted['organization']}/{wanted['name']}" == _NAME
        hub.exists, hub.content = True, {".gitattributes": b"*.bin lfs"}
        hub.private = wanted.get("visibility") == "private" or wanted.get("private") is True
        hub.kind = wanted.get("type") or "model"
        self._told({"url": f"{hub.url}/{'datasets/' if hub.kind == 'dataset' else ''}{_NAME}"})

    def _mode(self, branch: str, file: dict[str, Any]) -> dict[str, Any]:
        tree = self.hub.tree(branch) or {}
        mode = "lfs" if file["size"] >= LARGE else "regular"
        found = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if file["path"] in tree:
            found["oid"] = self.hub.etag(file["path"], tree[file["path"]])
        return found

    def _batch(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.hub.stored:
            return item
        return item | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}}

    def _store(self, path: str, data: bytes) -> None:
        hub, digest = self.hub, path.removeprefix("/lfs/")
        if hub.hold is not None and len(hub.stored) >= hub.hold:
            hub.held.set()
            hub.go_on.wait()
            return  # the connection ends without an answer
        assert hashlib.sha256(data).hexdigest() == digest
        hub.stored[digest] = data
        self._told({})

    def _file(self, name: str) -> None:
        hub = self.hub
        if name == hub.gone or name not in hub.content:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        data = hub.content[name]
        headers = {"ETag": f'"{hub.etag(name, data)}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
        if self.command == "GET":
            hub.served += len(data)
            if name == hub.damage:
                data = b"?" + data[1:]
        self._send(200, data, headers)

    def _told(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def point_at(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """The library in this process speaks to `hub`, with its token, and keeps what it must in `cache`."""
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", TOKEN)


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """The Hub at `hub.url` until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
