"""Who may use the page: whoever has its link, from this page alone.

A link with the token sets a cookie for this port and leads to the page without it; every other request shows the
cookie. Edits must come from a page of the same origin, as JSON. A request for another host's name is refused: a page
elsewhere may have had that name point here (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REFUSED = (
    "403: this page opens by its link alone, which has a token. chunkrl printed the link where it was started: open "
    "it from there, or copy it here whole."
)
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Gate:
    """Stands before an ASGI application. hosts: names by which the page may be asked for; (): any."""

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        response = self._answer(Request(scope))
        await (self._app if response is None else response)(scope, receive, with_headers)

    def _answer(self, request: Request) -> Response | None:
        """What is answered in the application's place; None: it may."""
        host = request.headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._hosts and name not in self._hosts:
            return PlainTextResponse(f"403: this is not {name}: use the link that chunkrl printed", 403)
        cookie = cookie_name(request.url.port)
        if (shown := request.query_params.get("token")) is not None and self._is_token(shown):
            entered = RedirectResponse("/", 303)
            entered.set_cookie(cookie, self._token, httponly=True, samesite="lax")
            return entered
        if not self._is_token(request.cookies.get(cookie, "")):
            return PlainTextResponse(REFUSED, 403)
        if request.method not in ("GET", "HEAD"):
            return self._refused_edit(request, host)
        return None

    def _refused_edit(self, request: Request, host: str) -> Response | None:
        if request.headers.get("origin") != f"{request.url.scheme}://{host}":
            return JSONResponse(
                {"error": "403: edits are taken from the page itself, not from another one"}, 403
            )
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return JSONResponse({"error": "415: an edit is sent as application/json"}, 415)
        return None

    def _is_token(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode(), self._token.encode())


def cookie_name(port: int | None) -> str:
    """Cookies are shared by all ports of a host: each page has its own."""
    return f"chunkrl_{port or 80}"


def allowed_hosts(host: str) -> frozenset[str]:
    """The names of a page that listens on `host`; () for any, where it listens on all of the machine's addresses."""
    try:
        if ipaddress.ip_address(host).is_unspecified:
            return frozenset()
    except ValueError:
        pass
    return frozenset({host, "localhost", "127.0.0.1", "::1"})
