"""A run that learns further tasks while its classifier is served."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.inference import Classifier
from pipeline.inference.export_record import RECORD_NAME
from pipeline.serving.service import Service

log = logging.getLogger(__name__)

_FILES = (RECORD_NAME, "results.json")  # one of them changes with every task that was learned
_LONGEST_PAUSE_S = 300.0  # after failures


def fingerprint(source: str) -> str:
    """A text that changes when the run or the export at ``source`` does.

    Raises:
        StorageError: its files cannot be read.
    """
    urls = [storage.join(source, name) for name in _FILES]
    found = next((url for url in urls if storage.exists(url)), urls[-1])
    return hashlib.sha256(storage.read_bytes(found, most=storage.MAX_TEXT_BYTES)).hexdigest()


@contextmanager
def following(
    service: Service, source: str, seen: str, load: Callable[[], Classifier], *, every_s: float
) -> Iterator[None]:
    """Within the block, look every ``every_s`` seconds whether ``source`` differs from ``seen``.

    If so, ``load()`` runs in a thread beside the requests, and later ones get its classifier. If it
    fails, the present classifier stays in use, and the next attempt comes after a longer pause.
    """
    stopped = threading.Event()

    def follow() -> None:
        known, pause_s = seen, every_s
        while not stopped.wait(pause_s):
            try:
                found = fingerprint(source)
                if found != known:
                    _replace(service, load())
                known, pause_s = found, every_s
            except Exception as error:  # whatever it is, the service continues
                pause_s = min(2 * pause_s, max(_LONGEST_PAUSE_S, every_s))
                service.metrics.reloads.labels("failed").inc()
                log.warning(
                    "a later state of the run cannot be loaded (%s); stage %d stays in use; "
                    "next attempt in %.0f s",
                    error,
                    service.classifier.stage,
                    pause_s,
                    exc_info=not isinstance(error, PipelineError),
                )

    # A daemon: a storage that does not answer must not delay the end of the process.
    thread = threading.Thread(target=follow, name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()


def _replace(service: Service, classifier: Classifier) -> None:
    before = service.classifier.stage
    service.use(classifier)
    service.metrics.reloads.labels("loaded").inc()
    log.info(
        "stage %d with %d classes replaces stage %d",
        classifier.stage,
        len(classifier.classes),
        before,
    )
