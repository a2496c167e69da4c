"""Who may use the service: the pages of other sites may not, although they run in a browser here.

A page of any site can send requests to a service on loopback. It cannot read the answers, since no
CORS header allows it; two further rules keep it out:

- **The host** must be an IP address, ``localhost`` or an allowed name. Otherwise a site could give
  its own name the address 127.0.0.1 and would then be of the same origin (DNS rebinding).
- **A POST from a page** must come from a page of this service. Browsers say so in
  ``Sec-Fetch-Site`` or, where a connection is not trusted, in ``Origin``. Programs send neither.
  Source of the rule: ``http.CrossOriginProtection`` of Go 1.25.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.text import shorten

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses requests for other hosts, and POST requests from pages of other origins."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None) -> None:
        """``hosts`` are the allowed names beside IP addresses and localhost; None allows all."""
        self._app = app
        self._hosts = None if hosts is None else {"localhost", *(name.lower() for name in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        refusal = None
        if not self._is_allowed(host):
            refusal = JSONResponse(
                {
                    "error": f"this service does not answer to the host {shorten(host)!r}; "
                    "allow its name with --allow-host"
                },
                421,
            )
        elif scope["method"] not in _SAFE_METHODS and _is_of_other_page(headers, host):
            refusal = JSONResponse({"error": "a page of another site may not send images"}, 403)
        await (refusal or self._app)(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        if self._hosts is None or not host:  # HTTP/1.0, which no browser sends
            return True
        name = _host_name(f"//{host}")
        return name in self._hosts or _is_address(name)


def _is_of_other_page(headers: Headers, host: str) -> bool:
    """Whether a browser sent the request for a page of another origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.lower().partition("://")[2] != host.lower()


def _host_name(url: str) -> str:
    """The host of a URL without its port; empty if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
