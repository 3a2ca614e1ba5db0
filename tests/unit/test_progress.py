"""What a training shows: a bar that keeps bar, count and time at 80 columns, lines where there is no terminal, and tqdm's in notebooks."""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path

import pytest

import mmrl
from mmrl.engine import progress
from mmrl.engine.progress import Progress, training_progress
from tests.unit.colours import OPTIONS, colours, smallest_clip

ROWS = [
    {"step": float(i), "epoch": float((i - 1) // 50 + 1), "lr": 0.1, "loss": 12.3456, "accuracy": 0.5, "cross_entropy": 1.5, "cosine": 3.25}
    for i in range(1, 1001)
]
LONGEST = "training tip-adapter-f"


def on_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of so many columns is sent for the steps of `ROWS`, one text for every time that the line is written."""
    pty, fcntl, termios = pytest.importorskip("pty"), pytest.importorskip("fcntl"), pytest.importorskip("termios")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, (24).to_bytes(2, sys.byteorder) + columns.to_bytes(2, sys.byteorder) + bytes(4))
    written = b""
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress, "INTERVAL", 0)
        with training_progress(LONGEST, epochs=20, steps=1000, done=0, show=True) as show:
            for row in ROWS[::97]:
                show(row)
                stream.flush()
                written += os.read(master, 65536)
        stream.flush()
        written += os.read(master, 65536)
    os.close(master)
    return written.decode().split("\r")


def test_bar_count_and_time_stay_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [line for line in on_terminal(80, monkeypatch) if "epoch" in line]
    assert len(shown) >= len(ROWS[::97]) and all(len(line) <= 80 for line in shown)
    parts = re.compile(rf"{LONGEST}, epoch \d+/20 [^\w,:]{{{progress.BAR}}} \d+/1000 [\d:]+, loss 1.*")  # what is cut is behind these
    assert all(parts.fullmatch(line) for line in shown[1:]), shown


def test_a_narrow_terminal_gets_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(line) <= 40 for line in on_terminal(40, monkeypatch))


def test_a_line_an_epoch_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("training x", epochs=20, steps=1000, done=0, show=True) as show:
        for row in ROWS:
            show({**row, "loss": row["step"]})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("training x: epoch 1/20  step 50/1000  loss 25.500  accuracy 50%  cross_entropy 1.500  cosine 3.250  0:")
    assert lines[-1].startswith("training x: epoch 20/20  step 1000/1000  loss 975.500") and lines[-1].endswith("0:00:00 left")
    assert "\r" not in "".join(lines)


def test_a_resumed_run_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("training x", epochs=20, steps=1000, done=925, show=True) as show:
        for row in ROWS[925:]:
            show(row)
    assert [line.split()[3] for line in capsys.readouterr().err.splitlines()] == ["19/20", "20/20"]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress("training x", epochs=20, steps=1000, done=0, show=False) as show:
        show(ROWS[0])
    assert capsys.readouterr() == ("", "")


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its widgets, as text; with them tqdm draws it."""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.ModuleType("zmqshell"))
    monkeypatch.setattr(progress, "INTERVAL", 0)
    with training_progress("training x", epochs=20, steps=1000, done=0, show=True) as show:
        for row in ROWS:
            show(row)
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("training x, epoch 20/20") and "1000/1000 00:00" in last


def test_train_says_what_trains_and_is_held_out(cli, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("train", "--data", photos, "--backbone", "tiny", "--method", "coop", "--out", tmp_path / "o", "--shots", 6, "--epochs", 1)
    code, _, err = cli(*words, "--batch-size", 4, "--lr", 0.01)
    lines = err.splitlines()
    assert code == 0 and "note: 2 classes, 16 photos: 12 to train, 4 held out" in lines
    assert "note: warmup_epochs is 0 instead of 1, since epochs is 1." in lines
    assert [line for line in lines if line.startswith("training coop: epoch 1/1  step 3/3  loss ")]


@pytest.mark.filterwarnings("ignore::mmrl.errors.Notice")
def test_a_watch_is_told_of_every_step_and_may_end_the_run() -> None:
    clip, told = smallest_clip(), list[Progress]()
    usual = {"backbone": clip, "shots": 4, "epochs": 2, "batch_size": 8, "progress": False, **OPTIONS}
    result = mmrl.train(colours(), classes="base", watch=told.append, calibrate=False, **usual)
    steps = [each for each in told if each.stage == "training"]
    assert [(each.done, each.total, each.epochs) for each in steps] == [(1, 2, 2), (2, 2, 2)]
    assert [each.row["loss"] for each in steps] == pytest.approx([row["loss"] for row in result.record.trained.history], abs=1e-3)
    assert {each.stage for each in told} == {"training", "testing"} and told[-1].stage == "testing"

    images = list[Progress]()
    mmrl.fit(colours(), method="gda", backbone=clip, shots=4, watch=images.append)
    assert images[0].stage == "images" and images[0].total > 0 and "training" not in {each.stage for each in images}

    class Enough(Exception):
        pass

    def once(progress: Progress) -> None:
        told.append(progress)
        raise Enough

    told.clear()
    with pytest.raises(Enough):
        mmrl.fit(colours(), watch=once, **usual)
    assert len(told) == 1
