"""Trainings of all visitors, one after another, and what each shows meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from mmrl.engine.progress import Progress, Watch
from mmrl.errors import MmrlError, UsageError, shortened

MOST_WAITING = 16
POINTS = 400  # of a loss curve
FAULT = "Something went wrong in mmrl itself. The window in which it runs says what."
State = Literal["waiting", "running", "done", "failed", "cancelled"]
log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The visitor stopped the training, or left."""


class Errand:
    """One piece of work in the queue.

    Args:
        work: is given what to tell of its progress, which raises `Cancelled` where it is to end.

    Attributes:
        error: one sentence, where it failed.
        progress: the latest.
        curve: step and loss, of at most `POINTS` steps.
    """

    def __init__(self, work: Callable[[Watch], object]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._ended = threading.Event()
        self.state: State = "waiting"
        self.error = ""
        self.progress: Progress | None = None
        self.curve: list[tuple[int, float]] = []
        self._first: tuple[int, float] | None = None  # step of the first row, and when it came

    @property
    def over(self) -> bool:
        return self._ended.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it was cancelled and still runs."""
        return self._stop.is_set() and not self.over

    def cancel(self) -> None:
        """It ends before its next step, or at once where it waits."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is over; whether it is."""
        return self._ended.wait(seconds)

    @property
    def seconds_left(self) -> float | None:
        """Of the steps that are left; None while it cannot be told."""
        now, first = self.progress, self._first
        if now is None or first is None or now.stage != "training" or now.done <= first[0]:
            return None
        return (time.monotonic() - first[1]) * (now.total - now.done) / (now.done - first[0])

    def told(self, progress: Progress) -> None:
        """Raises Cancelled where it is to end."""
        if progress.stage == "training":
            self._first = self._first or (progress.done, time.monotonic())
            every = -(-progress.total // POINTS)
            if progress.done == 1 or progress.done % every == 0:
                self.curve.append((progress.done, progress.row["loss"]))
        self.progress = progress
        if self._stop.is_set():
            raise Cancelled

    def run(self) -> None:
        """Do the work, whatever comes of it."""
        try:
            if self._stop.is_set():
                raise Cancelled
            self.state = "running"
            self._work(self.told)
            self.state = "done"
        except Cancelled:
            self.state = "cancelled"
        except MmrlError as error:
            self.error, self.state = str(error), "failed"
        except MemoryError:
            self.error, self.state = "There is not enough memory on this computer for that.", "failed"
        except Exception as error:
            if self._stop.is_set():  # a visitor who left takes the photos along
                self.state = "cancelled"
            else:
                log.exception("a training failed")
                memory = type(error).__name__ == "OutOfMemoryError"
                self.error, self.state = "There is not enough memory on the GPU for that." if memory else FAULT, "failed"
        finally:
            self.error = shortened(self.error)
            self._work = _nothing  # and with it the photos and the model that it holds
            self._ended.set()


def _nothing(watch: Watch) -> None:
    pass


class Queue:
    """Does jobs one at a time in a thread of its own: a training sets the random numbers of the whole process.

    Args:
        most: jobs that may wait.
    """

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._waiting: deque[Errand] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._go, name="mmrl-app", daemon=True)
        self._thread.start()

    def add(self, job: Errand) -> None:
        """Raises UsageError where too many wait."""
        with self._changed:
            self._drop_cancelled()
            if self._closed or len(self._waiting) >= self._most:
                raise UsageError(f"{self._most} others are waiting for their training already. Try again in a few minutes.")
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Errand) -> None:
        """End `job` before its next step; one that waits, at once."""
        job.cancel()
        with self._changed:
            self._drop_cancelled()

    def ahead(self, job: Errand) -> int:
        """How many jobs come before one that waits, with the one that runs."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def close(self, seconds: float = 10.0) -> None:
        """Take nothing more, drop what waits, and wait for the thread."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.cancel()
            self._drop_cancelled()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _drop_cancelled(self) -> None:
        for job in [each for each in self._waiting if each.stopping]:
            self._waiting.remove(job)
            job.run()  # which says that it is cancelled, and does nothing else

    def _go(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            job.run()
