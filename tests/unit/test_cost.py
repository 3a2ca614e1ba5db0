"""Costs: what is counted and what is not, one process a method, rows that join those that are there."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmrl import methods
from mmrl.cli.main import app
from mmrl.clip import Clip
from mmrl.engine import Bench, cost
from mmrl.engine.cost import WARM_UP, Measurement, measure, measure_apart
from mmrl.engine.grid import ResultsFolder
from mmrl.errors import MmrlError, UsageError
from mmrl.protocols import Training
from mmrl.protocols.plan import values
from mmrl.reports.cost import COST_FILE, CostRow, CostTable, hm_of
from mmrl.reports.results import Results, read_part
from tests.results_folder import cost_row, fill, halves, make_results
from tests.unit.colours import smallest_clip

OPTIONS = {"rep_tokens": 2, "rep_dim": 8, "epochs": 3, "batch_size": 2, "warmup_epochs": 0}
SHOTS = 3  # of 2 base classes: 3 batches an epoch
TESTED = 5  # images a test batch


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Clip:
    clip = smallest_clip()
    monkeypatch.setattr(cost, "load_clip", lambda name, device: clip)
    return clip


def what(root: Path, method: str = "mmrl", *, steps: int = 2, **options: Any) -> Measurement:
    training = Training(method, str(root), "base", SHOTS, 1, "base-to-novel", values(OPTIONS | options))
    return Measurement(Bench("smallest", batch_size=TESTED), str(root), None if method == "zero-shot" else training, steps)


def slow_start(slow: int) -> Callable[[], float]:
    """A clock: the first `slow` intervals between two looks take 100 s, those after them 1 s."""
    times: Iterator[float] = accumulate(chain([0.0], repeat(100.0, slow), repeat(1.0)))
    return lambda: next(times)


def test_minutes_follow_from_the_steps_and_the_recipe(root: Path, small: Clip) -> None:
    row = measure(what(root))
    assert row.train_ms_per_image and row.train_ms_per_image > 0 and row.images_per_second > 0
    images = 3 * 3 * 2  # epochs, batches an epoch, images a batch
    assert row.train_minutes and 0 <= row.train_minutes - row.train_ms_per_image * images / 60_000 < 1  # the rest is the set-up
    assert row.trained_parameters == sum(p.numel() for p in methods.build("mmrl", small, {"rep_tokens": 2, "rep_dim": 8}).parameters())
    assert (row.method, row.dataset, row.batch, row.steps, row.shots) == ("mmrl", str(root), TESTED, 2, SHOTS)
    assert "rep_dim=8" in row.variant and row.hm is None and row.modality == "V-L"
    weights = sum(parameter.nbytes for parameter in small.model.parameters())
    assert weights / 2**30 <= row.peak_memory_gib < 1


def test_the_first_steps_are_not_timed(root: Path, small: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([slow_start(WARM_UP - 1), slow_start(WARM_UP - 1)])
    made = cost._Clock.__init__

    def fresh(self: Any, clip: Clip) -> None:
        made(self, clip)
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=next(clocks)))

    monkeypatch.setattr(cost._Clock, "__init__", fresh)
    row = measure(what(root, steps=3, accumulate=2))
    assert row.train_ms_per_image == 1000 / 4  # two batches of two images a step
    assert row.train_minutes and 0 <= row.train_minutes - 3 * 2 / 60 < 1  # of three batches an epoch the last one makes a step, too
    assert row.images_per_second == TESTED


def test_views_that_are_shown_again_have_a_time_and_a_size(root: Path, small: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([[100.0, *(100.0 + at for at in range(1, 99))], [0.0, *(0.25 * at for at in range(1, 99))], [0.0, *range(1, 99)]])
    made = cost._Clock.__init__

    def fresh(self: Any, clip: Clip) -> None:
        made(self, clip)
        now = iter(next(ticks))
        monkeypatch.setattr(self, "tick", lambda: self.ticks.append(next(now)))

    monkeypatch.setattr(cost._Clock, "__init__", fresh)
    row = measure(what(root, steps=3, views=1, epochs=4))
    size = 4 * (small.embed_dim + math.prod(small.vision.visual.positional_embedding.shape))
    assert (row.views, row.train_ms_per_image, row.kept_ms_per_image) == (1, 1000 / 2, 250 / 2)
    assert row.views_gib == pytest.approx(2 * SHOTS * size / 2**30)
    steps = 2 * SHOTS // 2
    assert row.train_minutes and 0 <= row.train_minutes - steps * (1 + 3 * 0.25) / 60 < 1
    plain = CostRow.model_validate({key: value for key, value in row.model_dump().items() if "views" not in key and "kept" not in key})
    assert plain.views is None


def test_zero_shot_trains_nothing(root: Path, small: Clip) -> None:
    row = measure(what(root, "zero-shot"))
    assert (row.trained_parameters, row.train_ms_per_image, row.train_minutes, row.shots, row.variant) == (0, None, None, None, "")
    assert row.images_per_second > 0 and row.modality == "-"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mmrl", {}, "V-L"),
        ("mmrlpp", {}, "V-L"),
        ("mmrl", {"space": "free"}, "V, L"),
        ("mmrl", {"space": "text-to-visual"}, "V-L"),
        ("mmrl", {"textual": False}, "V"),
        ("mmrl", {"visual": False, "space": "free"}, "L"),
        ("zero-shot", {}, "-"),
    ],
)
def test_modality(name: str, options: dict[str, Any], expected: str) -> None:
    assert methods.build(name, smallest_clip(), options).modality == expected


def test_a_closed_form_costs_its_set_up(root: Path, small: Clip) -> None:
    training = Training("linear-probe", str(root), "base", SHOTS, 1, "base-to-novel")
    row = measure(Measurement(Bench("smallest", batch_size=TESTED), str(root), training, 2))
    assert (row.trained_parameters, row.train_ms_per_image, row.modality) == (0, None, "-")
    assert row.train_minutes is not None and row.train_minutes > 0 and row.images_per_second > 0


def test_a_fresh_process_gives_the_row(root: Path) -> None:
    asked = what(root, "zero-shot", steps=1)
    row = measure_apart(replace(asked, bench=replace(asked.bench, backbone="tiny")))
    assert (row.method, row.backbone, row.batch) == ("zero-shot", "tiny", TESTED) and row.images_per_second > 0


def killed(what: Measurement) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error_of_its_method(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure", killed)
    with pytest.raises(MmrlError, match="killed.*memory_gib"):
        measure_apart(what(root))


def test_rows_replace_those_of_the_same_alone(tmp_path: Path) -> None:
    store = ResultsFolder(tmp_path)
    store.add_costs(cost_row("mmrl", images_per_second=1.0), cost_row("mmrl", variant="rep_dim=32"))
    store.add_costs(cost_row("zero-shot"), cost_row("mmrl", dataset="dtd"))
    store.add_costs(cost_row("mmrl", images_per_second=2.0))
    rows = read_part(tmp_path / COST_FILE, CostTable, what="cost table").rows
    assert [(row.method, row.variant, row.dataset) for row in rows] == [
        ("mmrl", "rep_dim=32", "imagenet"), ("zero-shot", "", "imagenet"), ("mmrl", "", "dtd"), ("mmrl", "", "imagenet"),
    ]  # fmt: skip
    assert rows[-1].images_per_second == 2.0


def test_hm_is_that_of_a_complete_plan(tmp_path: Path) -> None:
    slots = halves(methods=("zero-shot", "mmrl"), seeds=(1, 2))
    make_results(tmp_path, slots)
    same = {"variant": "", "backbone": "tiny"}
    assert hm_of(Results(tmp_path), "mmrl", shots=16, **same) is None
    fill(tmp_path, slots, at=lambda slot: {"base": 0.6, "novel": 0.3}[slot.classes])
    assert hm_of(Results(tmp_path), "mmrl", shots=16, **same) == pytest.approx(0.4)
    assert hm_of(Results(tmp_path), "zero-shot", shots=None, **same) == pytest.approx(0.4)
    assert hm_of(Results(tmp_path), "mmrl", shots=8, **same) is None
    assert hm_of(Results(tmp_path), "mmrlpp", shots=16, **same) is None
    seeds = {None: (0.5, 0.5), 1: (0.9, 0.3), 2: (0.7, 0.5)}
    fill(tmp_path, slots, at=lambda slot: seeds[slot.seed][slot.classes == "novel"])
    of_means = 2 * 0.8 * 0.4 / 1.2  # not 0.517, the mean of the seeds' harmonic means
    assert hm_of(Results(tmp_path), "mmrl", shots=16, **same) == pytest.approx(of_means)
    next((tmp_path / "runs").iterdir()).unlink()
    left = hm_of(Results(tmp_path), "mmrl", shots=16, **same), hm_of(Results(tmp_path), "zero-shot", shots=None, **same)
    assert left.count(None) == 1, "the method that lacks a run has no HM any more"


# The command


Cli = Callable[..., Any]


@pytest.fixture
def cli(root: Path, tmp_path: Path) -> Cli:
    from typer.testing import CliRunner

    def call(*words: object, out: Path = tmp_path / "results") -> Any:
        own = ["--backbone", "tiny", "--data", root, "--out", out, "--steps", 1, "--batch", 4, "--shots", 2]
        return CliRunner().invoke(app, [str(word) for word in ("cost", *own, *words)])

    return call


def test_the_command_writes_what_it_measured(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Measurement] = []

    def answer(what: Measurement) -> Any:
        asked.append(what)
        if what.method == "mmrl":
            raise MmrlError("no memory left")
        return cost_row(what.method, hm=None, train_ms_per_image=12.345)

    monkeypatch.setattr(cost, "measure_apart", answer)
    done = cli("--methods", "zero-shot,mmrl,mmrlpp")
    assert isinstance(done.exception, MmrlError) and done.exception.exit_code == 1
    assert "mmrl could not be measured: no memory left" in str(done.exception)
    assert "mmrlpp" in done.stdout and "12.3" in done.stdout
    rows = json.loads((tmp_path / "results" / COST_FILE).read_text())["rows"]
    assert [row["method"] for row in rows] == ["zero-shot", "mmrlpp"]
    assert [(each.method, each.steps, each.bench.batch_size) for each in asked] == [
        ("zero-shot", 1, 4), ("mmrl", 1, 4), ("mmrlpp", 1, 4),
    ]  # fmt: skip


def test_a_damaged_table_is_found_before_anything_is_measured(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure_apart", lambda what: pytest.fail("measured"))
    ResultsFolder(tmp_path / "results")
    (tmp_path / "results" / COST_FILE).write_text('{"schema": "mmrl.cost/1", "rows": [{')
    done = cli("--methods", "zero-shot")
    assert isinstance(done.exception, MmrlError) and COST_FILE in str(done.exception)
    assert (tmp_path / "results" / COST_FILE).read_text().endswith("[{")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "mmrll"], "Did you mean 'mmrl'"),
        (["--data", "dtdd"], "Did you mean 'dtd'"),
        (["--methods", "mmrl", "--set", "rep_dimm=8"], "rep_dim"),
        (["--methods", "mmrl", "--set", "rep_dim=0"], "rep_dim is 0"),
        (["--methods", "zero-shot", "--precision", "fp8"], "fp8"),
        (["--methods", "zero-shot", "--precision", "fp16"], "needs a CUDA device"),
        (["--set", "precision=bf16"], "--precision"),
        (["--device", "gpu"], "gpu"),
    ],
)
def test_what_cannot_be_measured_is_a_mistake_of_usage(cli: Cli, tmp_path: Path, words: list[str], message: str) -> None:
    done = cli(*words)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("words", [["--steps", 0], ["--batch", 0], ["--shots", 0], ["--seed", -1]], ids=str)
def test_numbers_out_of_range(cli: Cli, words: list[object]) -> None:
    done = cli(*words)
    assert done.exit_code == 2 and str(words[0]) in done.output
