"""The page's server: Starlette on uvicorn, in a thread, on a socket that is bound before anybody is told its port."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Literal

from chunkrl.browser.workbench import Workbench
from chunkrl.config import record_of
from chunkrl.errors import ChunkRLError, LabelError, TransportError
from chunkrl.files.json_files import parse_json
from chunkrl.install import MissingExtraError
from chunkrl.label.by_hand import HandLabels, StaleEditError
from chunkrl.label.marks import Edit
from chunkrl.online.link.config import parse_address

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

    from chunkrl.browser.gate import Gate, allowed_hosts
except ImportError as error:
    raise MissingExtraError("The page in a browser", "starlette and uvicorn", "browser") from error

_MOST_ROWS = 200  # of a request
_MOST_BYTES = 4096  # of an edit
_KEPT = {"cache-control": "private, max-age=3600"}
_ASSETS = {
    "page.html": ("chunkrl.browser", "static/page.html", "text/html"),
    "page.css": ("chunkrl.browser", "static/page.css", "text/css"),
    "report.css": ("chunkrl.report", "templates/style.css", "text/css"),
    "page.js": ("chunkrl.browser", "static/page.js", "text/javascript"),
    "player.js": ("chunkrl.browser", "static/player.js", "text/javascript"),
    "queue.js": ("chunkrl.browser", "static/queue.js", "text/javascript"),
    "edits.js": ("chunkrl.browser", "static/edits.js", "text/javascript"),
}


class NotFoundError(ChunkRLError):
    """An episode, camera, file or step that is not there."""


def application(bench: Workbench, token: str, hosts: frozenset[str]) -> Gate:
    """What answers requests; edits only where labels can be changed."""
    pages = _Pages(bench)
    routes = [
        Route("/", pages.asset),
        Route("/static/{name}", pages.asset),
        Route("/api/page", pages.page),
        Route("/api/queue", pages.queue),
        Route("/api/rows", pages.rows),
        Route("/api/episode/{number:int}", pages.episode),
        Route("/api/episode/{number:int}/curves", pages.curves),
        Route("/frame/{key}/{number:int}/{camera:int}/{step:int}", pages.frame),
        Route("/video/{key}/{number:int}", pages.video),
    ]
    if bench.is_editable:
        routes.append(Route("/api/episode/{number:int}/{what:str}", pages.change, methods=["POST"]))
    handlers: dict[Any, Callable[[Request, Any], Response]] = {
        NotFoundError: lambda _, error: _error(error, 404),
        LabelError: lambda _, error: _error(error, 400),
        ChunkRLError: lambda _, error: _error(error, 422),
    }
    return Gate(Starlette(routes=routes, exception_handlers=handlers), token, hosts)


def _error(error: Exception, status: int, **more: Any) -> JSONResponse:
    return JSONResponse({"error": str(error), **more}, status)


class _Pages:
    """One method a route; those that are no coroutines run in threads."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench

    def asset(self, request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in _ASSETS:
            raise NotFoundError(f"no file {name}")
        package, place, kind = _ASSETS[name]
        return Response(files(package).joinpath(place).read_bytes(), media_type=kind)

    def page(self, request: Request) -> Response:
        return JSONResponse(self._bench.page())

    def queue(self, request: Request) -> Response:
        order = request.query_params.get("order", self._bench.order)
        if order not in ("doubt", "number", "unlabelled"):
            raise NotFoundError(f"no order {order!r}")
        return JSONResponse({"numbers": self._bench.queue(order)})

    def rows(self, request: Request) -> Response:
        texts = request.query_params.get("numbers", "").split(",")
        if len(texts) > _MOST_ROWS or not all(text.isascii() and text.isdecimal() for text in texts):
            raise NotFoundError(f"numbers: up to {_MOST_ROWS} episodes, joined by commas")
        return JSONResponse([self._found(self._bench.row, int(text)) for text in texts])

    def episode(self, request: Request) -> Response:
        return JSONResponse(self._found(self._bench.episode, request.path_params["number"]))

    def curves(self, request: Request) -> Response:
        return JSONResponse(self._found(self._bench.curves, request.path_params["number"]))

    def frame(self, request: Request) -> Response:
        given = self._of_these_data(request)
        found = self._found(self._bench.frame, given["number"], given["camera"], given["step"])
        return Response(found, media_type="image/jpeg", headers=_KEPT)

    def video(self, request: Request) -> Response:
        path = self._found(self._bench.video_file, self._of_these_data(request)["number"])
        return FileResponse(path, media_type="video/mp4", headers=_KEPT)

    def _of_these_data(self, request: Request) -> dict[str, Any]:
        if request.path_params["key"] != self._bench.key:
            raise NotFoundError("this page is of other data than chunkrl shows now: load it again")
        return request.path_params

    async def change(self, request: Request) -> Response:
        """An edit, `undo` or `redo`: {"version": of the episode that was looked at, "by": whose browser, ...}."""
        number, what = request.path_params["number"], request.path_params["what"]
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                raise LabelError(f"an edit has at most {_MOST_BYTES} bytes")
        given = parse_json(bytes(body), dict, "the edit", LabelError, "load the page again")
        version, by = given.pop("version", None), given.pop("by", "")
        if type(version) is not int or not isinstance(by, str):
            raise LabelError("an edit says which version of the episode it is of: load the page again")
        try:
            await run_in_threadpool(self._change, number, what, version, by[:64], given)
        except StaleEditError as error:
            return _error(error, 409, episode=self._bench.episode(number))
        return JSONResponse(await run_in_threadpool(self._bench.episode, number))

    def _change(
        self, number: int, what: Literal["edit", "undo", "redo"], version: int, by: str, given: dict[str, Any]
    ) -> None:
        shown, position = self._found(self._bench.place, number)
        assert isinstance(shown.labels, HandLabels)
        if what == "edit":
            edit = record_of(Edit, given, "the edit", LabelError, "load the page again")
            shown.labels.edit(position, version, edit, by)
        elif what in ("undo", "redo"):
            shown.labels.step(position, version, what, by)
        else:
            raise NotFoundError(f"nothing is called {what}")

    def _found(self, find: Callable[..., Any], *place: int) -> Any:
        try:
            return find(*place)
        except KeyError as error:
            raise NotFoundError(f"there is no {'/'.join(map(str, place))}") from error


class PageServer:
    """Answers from the start to `stop`, in a thread. link: with the token, to be opened in a browser.

    Raises:
        TransportError: the address cannot be had.
    """

    def __init__(self, bench: Workbench, address: str) -> None:
        host, port, self.is_loopback = parse_address(address)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise TransportError(
                f"cannot listen on {address}: {error.strerror}; give another --address"
            ) from error
        self.port, token = self._socket.getsockname()[1], secrets.token_urlsafe(24)
        self.link = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/?token={token}"
        config = uvicorn.Config(
            application(bench, token, allowed_hosts(host)),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after what is being answered; open connections are closed."""
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._server.force_exit = True
        self._thread.join(timeout=5)
        self._socket.close()
