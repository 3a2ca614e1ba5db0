"""The benchmarks run, their tables parse, and both sides compute the same. No time is asserted: that is for a quiet machine."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import common, inference, memory, test_pipeline, text_memory, train_step
from benchmarks.sides import Work, make_method
from benchmarks.train_step import BOUND
from mmrl.clip import Clip

SMALL = ["--backbone", "ViT-S-32-alt", "--layers", "2", "--batch", "2", "--threads", "1", "--repeats", "1"]
WORK = Work("ViT-S-32-alt", 2, "mmrl", classes=4, batch=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(common, "matrix_peak", functools.partial(common.matrix_peak, size=128))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return common.make_clip(WORK.backbone, WORK.layers)


def tables(text: str) -> list[list[dict[str, str]]]:
    """Markdown tables of `text`, each a list of rows by column name."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.strip().splitlines()]
            assert all(len(row) == len(head) for row in rows)
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def run(main: Any, arguments: list[str], out: Path) -> tuple[int, list[list[dict[str, str]]], dict[str, Any]]:
    code = main([*SMALL, *arguments, "--out", str(out)])
    return code, tables(out.read_text()), json.loads(out.with_suffix(".json").read_text())


def test_train_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "available", lambda: None)  # what else the machine does must not leave a side out
    arguments = ["--classes", "3,5", "--plain-limit", "3", "--no-memory"]
    code, (speed, work), numbers = run(train_step.main, arguments, tmp_path / "train.md")
    assert code == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "train.md").read_text().strip()
    assert [(row["method"], row["classes"]) for row in speed] == [(m, c) for m in ("mmrl", "mmrlpp") for c in ("3", "5")]
    for row, shown, counted in zip(numbers["rows"], speed, work, strict=True):
        assert float(shown["fast s/step"]) > 0
        assert row["flops"]["fast"] > 0
        if row["classes"] == 5:
            assert shown["plain s/step"] == "over --plain-limit 3" and shown["ratio"] == shown[BOUND] == counted[BOUND] == "-"
            continue
        assert row["gradients"]["relative"] < 1e-4 and row["gradients"]["tensors"] >= 10
        assert shown["ratio"] == f"{row['median']['plain'] / row['median']['fast']:.2f}"
        assert float(counted[BOUND]) > 2 and shown[BOUND] == counted[BOUND]  # exact counts, not times
        assert len(row["seconds"]["plain"]) == len(row["seconds"]["fast"]) == 1


def test_plain_side_is_left_out_when_memory_is_short(monkeypatch: pytest.MonkeyPatch, clip: Clip) -> None:
    monkeypatch.setattr(train_step, "available", lambda: 2**20)
    assert str(train_step.refusal(WORK, clip, None)).startswith("needs about")
    monkeypatch.setattr(train_step, "available", lambda: 2**40)
    assert train_step.refusal(WORK, clip, None) is None


def test_estimate_of_the_plain_sides_memory_is_linear(clip: Clip) -> None:
    """Extrapolated from 2 and 6 classes; counted for 20."""
    weights = sum(p.untyped_storage().nbytes() for p in clip.model.parameters())
    trained = sum(4 * p.nbytes for p in make_method(WORK, clip).parameters())
    estimate = memory.plain_needs(Work(WORK.backbone, WORK.layers, "mmrl", classes=20, batch=2), clip) - memory.PROCESS - weights - trained
    assert estimate == pytest.approx(1.1 * memory._kept(WORK, clip, 20), rel=0.02)


def test_memory_of_a_fresh_process(clip: Clip) -> None:
    peak = memory.peak_of(Work(WORK.backbone, WORK.layers, "mmrl", classes=4, batch=2, text_memory=1e-5), "fast", threads=1)
    weights = sum(p.untyped_storage().nbytes() for p in clip.model.parameters())
    assert peak is not None and peak.most >= peak.before > weights
    assert peak.seconds > 0 and peak.chunk == 1


def test_text_memory_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {None: memory.Peak(2**30, 9 * 2**30, 1.5, None), 2.0: memory.Peak(2**30, 4 * 2**30, 2.5, 100), 0.5: None}
    monkeypatch.setattr(text_memory, "peak_of", lambda work, side, **_: peaks[work.text_memory])
    code, (table,), _ = run(text_memory.main, ["--method", "mmrl", "--memory", "2"], tmp_path / "memory.md")
    assert code == 0
    assert [(row["text memory"], row["prompts in a chunk"], row["peak"]) for row in table] == [
        ("no limit", "all", "9.00 GiB"),
        ("2 GiB", "100", "4.00 GiB"),
    ]
    assert run(text_memory.main, ["--method", "mmrl", "--memory", "2", "--goal", "3"], tmp_path / "memory.md")[0] == 1
    code, (table,), _ = run(text_memory.main, ["--method", "mmrl", "--memory", "0.5"], tmp_path / "memory.md")
    assert code == 1 and table[1]["peak"] == "killed: out of memory"


def test_inference(tmp_path: Path) -> None:
    code, (table,), numbers = run(inference.main, [], tmp_path / "inference.md")
    assert code == 0
    assert [row["image tower"] for row in table] == [inference.BARE, "zero-shot", "mmrl", "mmrlpp"]
    assert table[0]["of bare"] == "1.000"
    counted = {row["tower"]: row["flops_per_image"] for row in numbers["rows"]}
    assert counted["zero-shot"] < counted[inference.BARE]


def test_test_pipeline(tmp_path: Path) -> None:
    out = tmp_path / "pipeline.md"
    small = ["--images", "5", "--workers", "0,1", "--batch", "2", "--repeats", "1", "--threads", "1"]
    assert test_pipeline.main([*small, "--out", str(out)]) == 0
    (table,), numbers = tables(out.read_text()), json.loads(out.with_suffix(".json").read_text())
    assert [(row["workers"], row["largest difference"]) for row in table] == [("0", "0"), ("1", "0")]
    assert [row["ratio"] for row in table] == [f"{row['ratio']:.2f}" for row in numbers["rows"]] and 5e4 < numbers["bytes"] < 2e5


def test_names_are_distinct_and_stay_the_same_when_there_are_more(clip: Clip) -> None:
    names = common.class_names(1000)
    assert len(set(names)) == 1000 and names[:24] == common.class_names(24)
    assert {len(name.split()) for name in names} == {1, 2, 3, 4, 5}
    assert int(clip.tokenize(names)[1].max()) < 77


def test_methods_the_plain_side_does_not_know_are_refused(clip: Clip) -> None:
    with pytest.raises(SystemExit, match="mmrl and mmrlpp"):
        make_method(Work("ViT-S-32-alt", 2, "zero-shot", 3, 2), clip)
