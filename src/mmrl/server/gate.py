"""How much is inside: images accepted and not answered, bytes of bodies held. What is too much is refused, with a time to come back."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass

from mmrl.server.metrics import Meters
from mmrl.server.refusals import Refused
from mmrl.server.settings import Limits

LONGEST_WAIT = 30  # seconds that a client is asked to wait, at most
_REMEMBERED = 256  # answers that the rate is taken from


@dataclass
class Ticket:
    """What one request has taken, and what the log says of it."""

    slots: int = 0
    bytes: int = 0
    adapter: str = ""
    images: int = 0
    why: str = ""


class Gate:
    """Counts of one process. All of it happens on the event loop.

    Attributes:
        draining: whether the server is shutting down: what comes on open connections is still answered, and then they are closed.
        slots: images inside.
    """

    def __init__(self, limits: Limits, metrics: Meters) -> None:
        self.limits, self._metrics = limits, metrics
        self.draining = False
        self.slots = self.held = 0
        self._answered: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    def take(self, ticket: Ticket, slots: int) -> None:
        """Raises Refused (429) where there is no room for as many images more."""
        if self.slots + slots > self.limits.queue:
            raise self._full(f"the queue is full: {self.limits.queue} images are waiting")
        self.slots, ticket.slots = self.slots + slots, ticket.slots + slots
        self._show()

    def hold(self, ticket: Ticket, count: int) -> None:
        """Raises Refused (429) where there is no room for as many bytes more."""
        if self.held + count > self.limits.held:
            raise self._full("too many bytes of other requests are held")
        self.held, ticket.bytes = self.held + count, ticket.bytes + count

    def leave(self, ticket: Ticket) -> None:
        """The request is answered, one way or the other."""
        self.slots, self.held = self.slots - ticket.slots, self.held - ticket.bytes
        if ticket.slots:
            self._answered.append((time.monotonic(), ticket.slots))
        ticket.slots = ticket.bytes = 0
        self._show()

    def _full(self, what: str) -> Refused:
        seconds = self.wait()
        return Refused(429, f"{what}; ask again in {seconds} s.", {"Retry-After": str(seconds)})

    def wait(self) -> int:
        """Whole seconds until what is inside now will be answered, from the pace of the latest answers; at least 1."""
        if len(self._answered) < 2:
            return 1
        took = time.monotonic() - self._answered[0][0]
        pace = sum(images for _, images in self._answered) / max(took, 1e-3)
        return min(LONGEST_WAIT, max(1, math.ceil(self.slots / max(pace, 1e-3))))

    def _show(self) -> None:
        self._metrics.show(self.slots, self.held)
