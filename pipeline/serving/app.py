"""The routes of the service and their answers, which are JSON or one of the three page files.

===============  ========================================================================
``POST /predict``  the best classes of one image, ``?top=5``
``GET /classes``   the classes in class order, and the task that taught each
``GET /healthz``   the process answers
``GET /readyz``    the process can take another image; otherwise 503
``GET /metrics``   figures for Prometheus
``GET /``          a page to drop an image on
===============  ========================================================================
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.metrics import CONTENT_TYPE, Metrics
from pipeline.serving.origins import Guard
from pipeline.serving.service import Service
from pipeline.serving.uploads import read_upload

DEFAULT_TOP = 5

_FOLDER = Path(__file__).parent
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_NO_ROUTE = {
    404: "there is no such path; the service has POST /predict and GET /classes, /healthz, "
    "/readyz, /metrics and /",
    405: "this path takes another method: /predict takes POST, all others take GET",
}
_OTHER = "other"  # the path of all unknown paths in the metrics, which must not grow


def build_app(service: Service, *, hosts: Sequence[str] | None) -> Starlette:
    """The ASGI application; ``hosts`` are the names that it answers to, see :class:`Guard`."""
    routes = [
        Route("/predict", _predict, methods=["POST"]),
        Route("/classes", _classes),
        Route("/healthz", _healthz),
        Route("/readyz", _readyz),
        Route("/metrics", _metrics),
        *(Route(path, _page) for path in _PAGE),
    ]
    paths = frozenset(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(_Measured, metrics=service.metrics, paths=paths),
            Middleware(Guard, hosts=hosts),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    app.state.service = service
    return app


async def _predict(request: Request) -> Response:
    service: Service = request.app.state.service
    top = _top(request)
    with service.place():
        limits = service.limits
        data = await read_upload(request, most_bytes=limits.upload_bytes, seconds=limits.upload_s)
        classifier, scored = await service.classify(data, top)
    best = [
        {
            "class": classifier.classes[number],
            "probability": probability,
            "task": classifier.task_of_class[number],
        }
        for number, probability in zip(*scored, strict=True)
    ]
    return JSONResponse({"run": service.source, "stage": classifier.stage, "top": best})


async def _classes(request: Request) -> Response:
    service: Service = request.app.state.service
    classifier = service.classifier
    rows = zip(classifier.classes, classifier.task_of_class, strict=True)
    classes = [{"class": name, "task": task} for name, task in rows]
    return JSONResponse({"run": service.source, "stage": classifier.stage, "classes": classes})


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _readyz(request: Request) -> Response:
    service: Service = request.app.state.service
    if service.is_full:
        raise HTTPException(503, f"{service.limits.queue} images are waiting already")
    return JSONResponse(
        {
            "status": "ready",
            "run": service.source,
            "stage": service.classifier.stage,
            "classes": len(service.classifier.classes),
        }
    )


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.service.metrics.render(), media_type=CONTENT_TYPE)


async def _page(request: Request) -> Response:
    name, kind = _PAGE[request.url.path]
    return Response((_FOLDER / name).read_bytes(), media_type=kind)


def _top(request: Request) -> int:
    text = request.query_params.get("top", str(DEFAULT_TOP))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise HTTPException(400, "top is not a whole number from 1 on, such as ?top=5")
    return int(text)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = _NO_ROUTE.get(error.status_code, error.detail)
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    """A fault of the program: Starlette writes its traceback to the log, never to the client."""
    return JSONResponse({"error": "the service failed; its log describes the fault"}, 500)


class _Measured:
    """Counts the answers of an application and their times."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)

        async def send_and_see(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            path = scope["path"] if scope["path"] in self._paths else _OTHER
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)
