"""Who may ask, and how much: origin, host, API key and body size, before any route is reached."""

from __future__ import annotations

import hmac
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latency_tables.errors import TrimtabError
from service.errors import AuthError, OriginError, TooLargeError
from service.metrics import Metrics
from service.problems import problem_response
from service.settings import Settings

MAX_JSON_BYTES = 1 << 20
# Multipart boundaries and part headers around an upload.
_UPLOAD_SLACK = 1 << 16
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware.

    A web page the operator happens to visit must not reach a server on loopback: pages of another
    origin are refused by their Origin header, and names that were made to point at 127.0.0.1 (DNS
    rebinding) by their Host header.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"], time.perf_counter() - began)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except TrimtabError as error:
            await problem_response(error)(scope, receive, counted)
            return
        await self.app(scope, self._limited(scope["path"], receive), counted)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._settings.loopback and urlsplit(f"//{host}").hostname not in _LOOPBACK_HOSTS:
            raise OriginError(f"this server listens on loopback and is not called {host!r}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise OriginError(f"pages of {origin} may not use this server")
        key = self._settings.api_key
        if key is not None and (path == "/v1" or path.startswith("/v1/")):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                given.strip().encode(), key.encode()
            ):
                raise AuthError("send the API key as `Authorization: Bearer KEY`")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._limit(path):
            raise TooLargeError(
                f"a body of {length} bytes is too large; at most {self._limit(path)}"
            )

    def _limit(self, path: str) -> int:
        if path.rstrip("/") == "/v1/weights":
            return self._settings.max_weights_bytes + _UPLOAD_SLACK
        return MAX_JSON_BYTES

    def _limited(self, path: str, receive: Receive) -> Receive:
        """Counts the bytes of a body that does not say how long it is."""
        limit = self._limit(path)
        total = 0

        async def limited() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > limit:
                # FastAPI passes only its own kind of error on from where it reads the body.
                raise HTTPException(413, f"the body is too large; at most {limit} bytes")
            return message

        return limited

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern, not the path: one label a job would never stop growing.
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.requests.labels(scope["method"], route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
