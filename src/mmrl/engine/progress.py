"""What a training shows while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl.engine.loop import Row

TENSORBOARD_FOLDER = "tensorboard"
NOT_SHOWN = ("step", "epoch", "lr")


def _numbers(row: Row) -> str:
    """One step in one line: loss, accuracy and the terms."""
    parts = [f"{name} {value:.0%}" if name == "accuracy" else f"{name} {value:.3f}" for name, value in row.items() if name not in NOT_SHOWN]
    return "  ".join(parts)


@contextmanager
def training_progress(title: str, *, epochs: int, steps: int, done: int, show: bool) -> Iterator[Callable[[Row], None]]:
    """A function that shows a step, on stderr; only on a terminal, so that logs stay short.

    Args:
        steps: in all; `done` of them before.
    """
    from rich.console import Console  # here, as are the parts of the bar: most commands show none

    console = Console(stderr=True)
    if not show or not console.is_terminal:
        yield lambda row: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    texts = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
    columns = (texts[0], BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), texts[1])
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=steps, completed=done, numbers="")

        def show_row(row: Row) -> None:
            bar.update(task, completed=row["step"], description=f"{title}, epoch {row['epoch']:.0f}/{epochs}", numbers=_numbers(row))

        yield show_row


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
