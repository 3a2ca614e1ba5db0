"""What Prometheus reads: requests, errors, times, the queue and the batches. In several processes the numbers are of all of them."""

from __future__ import annotations

import os
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from mmrl.server.settings import PACKAGE

SHARED = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own variable
CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """The counters of one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        count = partial(Counter, registry=self._registry, namespace=PACKAGE)
        spread = partial(Histogram, registry=self._registry, namespace=PACKAGE)
        gauge = partial(Gauge, registry=self._registry, namespace=PACKAGE, multiprocess_mode="livesum")
        self.requests = count("requests", "Requests, by address, adapter and status.", ("route", "adapter", "status"))
        self.errors = count("errors", "Requests that were refused or failed, by status.", ("status",))
        self.seconds = spread("request_seconds", "From the head of a request to its answer.", ("route",), buckets=_SECONDS)
        self.images = count("images", "Images that were classified.", ("adapter",))
        self.batch = spread("batch_images", "Images that passed the image tower together.", buckets=_IMAGES)
        self.batch_seconds = spread("batch_seconds", "Of a batch in the image tower and scoring.", buckets=_SECONDS)
        self.queue = gauge("queue_images", "Images accepted and not answered yet.")
        self.held = gauge("held_bytes", "Bytes of the bodies that are held.")
        self.reloads = count("reloads", "Adapters loaded again, by how it went.", ("adapter", "result"))
        self.lists = count("class_lists", "Class lists asked for, by whether they were kept.", ("result",))

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        whole = CollectorRegistry()
        MultiProcessCollector(whole)
        return generate_latest(whole)

    def show(self, queue: int, held: int) -> None:
        """Set the gauges."""
        self.queue.set(queue)
        self.held.set(held)
