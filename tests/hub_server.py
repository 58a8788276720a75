"""A small Hub on this machine, as `huggingface_hub` speaks to it: repositories in memory, over HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = 1000  # bytes from which a file is stored as LFS, with a sha256


@dataclass
class Hub:
    """content: file -> bytes of the one repository `owner/name`. Counts and faults of the server.

    asked: (method, path) of every request. served: bytes of files that were sent. damage: a file whose first byte is
    sent wrong. gone: a file that is listed and not there. status: of every answer, where it is not 200.
    """

    content: dict[str, bytes]
    commit: str = "0" * 40
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    served: int = 0
    damage: str = ""
    gone: str = ""
    status: int = 200

    def entry(self, name: str) -> dict[str, object]:
        data = self.content[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        found: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if len(data) >= LARGE:
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return found

    def etag(self, name: str) -> str:
        entry = self.entry(name)
        lfs = entry.get("lfs")
        return str(lfs["oid"] if isinstance(lfs, dict) else entry["oid"])


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """The Hub at `hub.url` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path))
            if hub.status != 200:
                self._send(hub.status, b"{}", {"X-Error-Message": "the server is ill"}, body)
            elif re.fullmatch(r"/api/models/owner/name(/revision/(main|v1|0{40}))?", path):
                told = {"id": "owner/name", "modelId": "owner/name", "sha": hub.commit, "siblings": []}
                self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith("/api/models/owner/name/revision/"):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            elif path.startswith(f"/api/models/owner/name/tree/{hub.commit}"):
                told = [hub.entry(name) for name in hub.content]
                self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(f"/owner/name/resolve/{hub.commit}/"):
                self._file(path.split(f"{hub.commit}/", 1)[1], body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

        def _file(self, name: str, body: bool) -> None:
            if name == hub.gone or name not in hub.content:
                self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
                return
            data = hub.content[name]
            if name == hub.damage and body:
                data = b"?" + data[1:]
            etag = hub.etag(name)
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
            if body:
                hub.served += len(data)
            self._send(200, data, headers, body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
