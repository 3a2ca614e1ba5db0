"""`mmrl ablate --vary`: any option at several values, its table and its curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrl.cli.options import parse_vary
from mmrl.errors import UsageError
from mmrl.protocols import sweep
from mmrl.protocols.sweeps import SWEEP
from mmrl.reports import plans
from mmrl.reports.figures import study_drawings
from mmrl.reports.measures import StudyScores
from mmrl.reports.report import build_report
from mmrl.reports.results import Results
from mmrl.reports.tables import study_sheets
from tests import results_folder as made
from tests.unit.grids import COMMON, contents
from tests.unit.test_cli_bench import Bench, mmrl  # noqa: F401  (a fixture)


def test_products_and_pairs() -> None:
    def rows(**more: object) -> dict[str, dict[str, object]]:
        cells = sweep({"lr": [5e-4, 1e-3], "epochs": [5, 10]}, ["d"], [1], method="m", **more)  # type: ignore[arg-type]
        assert {cell.study for cell in cells} == {"vary-lr-epochs"} and len({(c.variant, c.classes) for c in cells}) == len(cells)
        return {cell.variant: dict(cell.training.overrides) for cell in cells if cell.training}

    assert rows() == {f"lr={lr}, epochs={e}": {"lr": lr, "epochs": e} for lr in (0.0005, 0.001) for e in (5, 10)}
    assert list(rows(paired=True)) == ["lr=0.0005, epochs=5", "lr=0.001, epochs=10"]
    assert next(iter(rows(overrides={"lam": 2}))) == "lr=0.0005, epochs=5, lam=2"
    assert {cell.variant for cell in sweep({"lr": [0.1, 0.2]}, ["d"], [1], method="m")} == {"0.1", "0.2"}
    assert SWEEP == plans.SWEEP and plans.swept("vary-lr-epochs") == ("lr", "epochs") and not plans.swept("lambda")


def test_values_are_read_as_they_are_meant() -> None:
    found = parse_vary(["lr=5e-4,1e-3", 'ctx_init="a photo, of",this', "crop_scale=[0.5,1.0],[0.1,1]", "csc=true,false", "init=kmeans"])
    assert found == {
        "lr": [5e-4, 1e-3], "ctx_init": ["a photo, of", "this"], "crop_scale": [[0.5, 1.0], [0.1, 1]], "csc": [True, False],
        "init": ["kmeans"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr"], "expected KEY=VALUES"), (["lr=1,1.0"], "each once"), (["lr=1,,2"], "each once"), (["lr="], "each once"),
        (["lr=1", "lr=2"], "varied twice"), (["seed=1,2"], "use --seeds"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_vary(words)


def test_refusals_of_the_command(mmrl: Bench, root: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("--datasets", root, "--seeds", "1", "--out", tmp_path / "out", *COMMON)
    for more, said in [
        (("alpha", "--vary", "lr=1"), "without a name"),
        ((), "give one of the paper's ablations"),
        (("alpha", "--paired"), "--paired is for several --vary"),
        (("--vary", "epochs=1,2"), "epochs is varied, so it cannot be set to 2 as well"),
        (("--vary", "lr=0.1,0.2", "--vary", "alpha=0.5", "--paired"), "there are 2 of lr, 1 of alpha"),
        (("--vary", "lrr=0.1"), "did you mean 'lr'?"),
        (("--vary", "alpha=0.5,7"), "alpha is 7"),
        (("--method", "zero-shot", "--vary", "alpha=0.5"), "nothing to vary"),
    ]:
        code, _, err = mmrl("ablate", *more, *words)
        assert code == 2 and said in err, err
    assert not (tmp_path / "out" / "plans").exists()


def test_unchanged_trainings_are_shared_with_bench(mmrl: Bench, root: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("--datasets", root, "--seeds", "1", "--shots", "2", "--out", tmp_path / "out", *COMMON)
    assert mmrl("bench", "base-to-novel", "--methods", "mmrl", *words)[0] == 0
    code, printed, _ = mmrl("ablate", "--vary", "alpha=0.7,0.3", *words)
    assert code == 0 and "4 scores, 2 of them computed already; 1 training and 0" in printed and "alpha" in printed
    assert {slot["variant"].split(",")[0] for slot in contents(tmp_path / "out", "plans")["vary-alpha"]["slots"]} == {"0.7", "0.3"}


def test_table_curve_and_page(tmp_path: Path) -> None:
    two = [f"lr={lr}, epochs={epochs}" for lr in ("0.0005", "0.001", "0.01") for epochs in (5, 10)]
    slots = [
        *made.halves("vary-lr-epochs", ("mmrl",), variants=two, seeds=(1, 2)),
        *made.halves("vary-lr", ("mmrl",), variants=("0.001", "0.0005"), seeds=(1, 2)),
        *made.halves("vary-lam", ("mmrl", "coop"), variants=("1, n=2", "2, n=2"), seeds=(1,)),
        *made.halves("vary-regulariser", ("mmrl",), variants=("cosine", "l1"), seeds=(1,)),
    ]
    made.fill(made.make_results(tmp_path / "r", slots), slots)
    results = Results(tmp_path / "r")
    scores = {study: StudyScores(results, plan) for study, plan in results.plans.items()}
    (drawing,) = study_drawings(scores["vary-lr-epochs"])
    assert drawing.series == ("epochs=5", "epochs=10") and len(drawing.charts) == 3 and drawing.title == "HM in %"
    (single,) = study_drawings(scores["vary-lr"])
    assert single.series == ("base", "novel", "HM")
    (both,) = study_drawings(scores["vary-lam"])
    assert both.series == ("MMRL, n=2", "CoOp, n=2")
    assert study_drawings(scores["vary-regulariser"])[0].charts
    first = study_sheets(scores["vary-lr"])[0]
    assert first.title == "Ablation: lr, average of 2 data sets" and first.heads[0] == "lr"
    assert [row[0] for row in first.rows] == ["0.0005", "0.001"]
    page, *tables = build_report(tmp_path / "r", tmp_path / "report")
    assert "Ablation: lr, epochs" in page.read_text() and tmp_path / "report" / "tables" / "vary-lr-epochs-average.csv" in tables


def test_a_closed_vocabulary_is_swept_on_its_own_classes(tmp_path: Path) -> None:
    slots = made.halves("vary-lr-epochs", (made.CLOSED,), variants=("lr=1, epochs=2", "lr=2, epochs=2"), seeds=(1,))
    made.fill(made.make_results(tmp_path, slots), slots)
    results = Results(tmp_path)
    (drawing,) = study_drawings(StudyScores(results, results.plans["vary-lr-epochs"]))
    assert drawing.title == "base in %" and len(drawing.charts) == 3
