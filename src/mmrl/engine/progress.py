"""What a training shows while it runs: a bar on a terminal and in a notebook, a line an epoch everywhere else."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmrl.engine.guard import Row
from mmrl.engine.turns import Turns

T = TypeVar("T")

TENSORBOARD_FOLDER = "tensorboard"
NOT_SHOWN = ("step", "epoch", "lr")
INTERVAL = 0.1  # seconds between two changes of a bar
BAR = 20  # columns; a fixed number, so that numbers that grow leave bar, count and time where they are
WIDTH = 80  # columns of a bar in text, where there is no terminal to ask


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: "images" (frozen passes over the training images, of methods that work on features), "training" or "testing".
        done, total: batches of images, or training steps; total is 0 where it is not known before the end.
        row: of a training step: step and epoch (from 1), lr, loss, accuracy and the loss terms.
        epochs: of the training; 0 outside of it.
    """

    stage: Literal["images", "training", "testing"]
    done: int
    total: int = 0
    row: Row = field(default_factory=dict)
    epochs: int = 0


Watch = Callable[[Progress], object]


def watching(watch: Watch | None, steps: int, epochs: int) -> list[Callable[[Row], object]]:
    """What tells `watch`, if there is one, of a row of a training of so many steps and epochs."""
    return [] if watch is None else [lambda row: watch(Progress("training", int(row["step"]), steps, row, epochs))]


def watched(turns: Turns[T], watch: Watch) -> Turns[T]:
    """`turns` of tests; `watch` is told before each."""
    done = 0
    with closing(turns):
        while True:
            try:
                at = next(turns)
            except StopIteration as end:
                result: T = end.value
                return result
            watch(Progress("testing", done))
            done += 1
            yield at


def _numbers(row: Row) -> str:
    """One step in one line: loss, accuracy and the terms."""
    parts = [f"{name} {value:.0%}" if name == "accuracy" else f"{name} {value:.3f}" for name, value in row.items() if name not in NOT_SHOWN]
    return "  ".join(parts)


def in_notebook() -> bool:
    """Whether this process answers a notebook (Jupyter, Colab, VS Code)."""
    return "ipykernel.zmqshell" in sys.modules


@contextmanager
def training_progress(title: str, *, epochs: int, steps: int, done: int, show: bool) -> Iterator[Callable[[Row], None]]:
    """A function that shows a step.

    Args:
        steps: in all; `done` of them before.
    """
    if not show:
        yield lambda row: None
    elif in_notebook() or sys.stderr.isatty():
        with _bar(title, steps, done) as bar:

            def show_row(row: Row) -> None:
                bar.set_description_str(f"{title}, epoch {row['epoch']:.0f}/{epochs}", refresh=False)
                bar.set_postfix_str(_numbers(row), refresh=False)
                bar.update(int(row["step"]) - bar.n)

            yield show_row
    else:
        yield _Lines(title, epochs, steps, done)


def _bar(title: str, steps: int, done: int) -> Any:
    """tqdm's bar: widgets in a notebook that has them, text elsewhere, cut at the width of the terminal from the right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without widgets: it gets the text
        from tqdm.auto import tqdm

    notebook, widgets = in_notebook(), tqdm.__mro__[1].__name__ == "tqdm_notebook"
    form = f"{{desc}} {{bar{'' if widgets else f':{BAR}'}}} {{n_fmt}}/{{total_fmt}} {{remaining}}{{postfix}}"
    size: dict[str, Any] = {} if widgets else {"ncols": WIDTH} if notebook else {"dynamic_ncols": True}
    return tqdm(total=steps, initial=done, desc=title, bar_format=form, leave=notebook, mininterval=INTERVAL, **size)


class _Lines:
    """Prints a line to stderr when an epoch has ended, with means over its steps."""

    def __init__(self, title: str, epochs: int, steps: int, done: int) -> None:
        self.title, self.epochs, self.steps, self.done = title, epochs, steps, done
        self._rows: list[Row] = []
        self._start = time.monotonic()

    def __call__(self, row: Row) -> None:
        if self._rows and row["epoch"] > self._rows[-1]["epoch"]:
            self._print()
        self._rows.append(row)
        if row["step"] == self.steps:
            self._print()

    def _print(self) -> None:
        rows, self._rows = self._rows, []
        last = rows[-1]
        left = (time.monotonic() - self._start) * (self.steps - last["step"]) / max(1, last["step"] - self.done)
        where = f"epoch {last['epoch']:.0f}/{self.epochs}  step {last['step']:.0f}/{self.steps}"
        print(f"{self.title}: {where}  {_numbers(_means(rows))}  {_duration(left)} left", file=sys.stderr, flush=True)


def _means(rows: Sequence[Row]) -> Row:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1]}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


@contextmanager
def training_log(folder: Path, *, first_step: int) -> Iterator[Callable[[Row], None]]:
    """A function that logs a step for TensorBoard below `folder`; what an interrupted run logged after step `first_step` is dropped."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_step + 1 if first_step else None) as writer:

        def log_row(row: Row) -> None:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, int(row["step"]))
            writer.flush()

        yield log_row
