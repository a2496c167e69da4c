"""The figures of a service, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one service; several services of a process share none."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, open files, CPU time
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "tppt_requests", "Answered requests.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "tppt_request_seconds",
            "Seconds from the request's headers to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("tppt_images", "Classified images.", registry=registry)
        self.batch = Histogram(
            "tppt_batch_images", "Images of a batch.", buckets=_IMAGES, registry=registry
        )
        self.queue = Gauge(
            "tppt_queue_images",
            "Accepted images without an answer: uploaded, decoded, waiting or classified.",
            registry=registry,
        )
        self.stage = Gauge(
            "tppt_model_stage", "Tasks the classifier has learned.", registry=registry
        )
        self.classes = Gauge("tppt_model_classes", "Classes of the classifier.", registry=registry)
        self.reloads = Counter(
            "tppt_reloads", "Later states of a followed run.", ["result"], registry=registry
        )

    def add_batch(self, n_images: int) -> None:
        """Count a batch that was classified."""
        self.batch.observe(n_images)
        self.images.inc(n_images)

    def render(self) -> bytes:
        """All figures, in the text format of Prometheus."""
        return generate_latest(self._registry)
