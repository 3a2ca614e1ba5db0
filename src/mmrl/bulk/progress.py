"""How far a prediction is: a bar on a terminal and in a notebook, a line a minute everywhere else; on stderr."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmrl.engine.progress import BAR, INTERVAL, WIDTH, in_notebook

DELAY = 1.0  # seconds before a bar is shown: a few images need none
EVERY = 60.0  # seconds between two lines


class Counting:
    """Counts images; what is said meanwhile does not break the bar."""

    def update(self, count: int) -> None: ...

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _OnBar(Counting):
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self, count: int) -> None:
        self._bar.update(count)

    def say(self, line: str) -> None:
        self._bar.write(line, file=sys.stderr)


class _InLines(Counting):
    def __init__(self, total: int | None, done: int) -> None:
        self._total, self._before, self._done = total, done, done
        self._began = self._said = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said >= EVERY:
            self._said = now
            self.say(line(self._done, self._done - self._before, self._total, now - self._began))


def line(done: int, new: int, total: int | None, seconds: float) -> str:
    """'1,200 of 5,000 images, 40.0/s, 01:35 left', of `new` images in so many seconds."""
    from tqdm import tqdm

    rate = new / max(seconds, 1e-9)
    of, left = "", ""
    if total is not None:
        of, left = f" of {total:,}", f", {tqdm.format_interval(max(0, total - done) / max(rate, 1e-9))} left"
    return f"{done:,}{of} images, {rate:.1f}/s{left}"


@contextmanager
def shown(total: int | None, done: int, *, show: bool) -> Iterator[Counting]:
    """What counts images to `total`, where that is known; `done` of them were answered before."""
    if not show:
        yield Counting()
    elif in_notebook() or sys.stderr.isatty():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without widgets: it gets the text
            from tqdm.auto import tqdm
        notebook, widgets = in_notebook(), tqdm.__mro__[1].__name__ == "tqdm_notebook"
        bar = "{bar}" if widgets else f"{{bar:{BAR}}}"
        known = f"{bar} {{n:,}}/{{total:,}} images, {{rate_noinv_fmt}}, {{remaining}} left" if total else "{n:,} images, {rate_noinv_fmt}"
        size: dict[str, Any] = {} if widgets else {"ncols": WIDTH} if notebook else {"dynamic_ncols": True}
        size |= {"delay": DELAY, "mininterval": INTERVAL, "leave": False}
        with tqdm(total=total, initial=done, bar_format=known, unit="", **size) as on_screen:
            yield _OnBar(on_screen)
    else:
        yield _InLines(total, done)
