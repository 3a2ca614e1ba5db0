"""`--methods all`: every registered method in the four evaluations and in the table of costs, and what is left out where."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import pytest

from mmrl import methods
from mmrl.clip import load_clip
from mmrl.engine import Bench, Context, bind, cost
from mmrl.engine.cost import Measurement
from mmrl.engine.jobs import carried
from mmrl.protocols import EVALUATIONS, MINI, evaluation
from mmrl.protocols.plan import ZERO_SHOT
from mmrl.reports.cost import COST_FILE, CostRow
from tests.results_folder import cost_row
from tests.unit.conftest import Cli
from tests.unit.grids import contents, scored

ALL = methods.names()
CLOSED = {name for name, cls in methods.registered().items() if not cls.open_vocabulary(cls.Options())}
CHEAP = ("zero-shot", "linear-probe", "lpp", "tip-adapter", "ape", "gda", "clap")  # trained in a moment, in closed form or nearly


@pytest.fixture(scope="module")
def mini() -> Context:
    return Context(Bench("tiny"), load_clip("tiny", device="cpu"))


@pytest.mark.parametrize("study", EVALUATIONS)
def test_every_method_is_planned_and_bound(mini: Context, study: str) -> None:
    """On the mini benchmark, whose model is shallower than the published one."""
    cells = evaluation(study, MINI, ALL, (1,), shots=(2,))
    jobs, slots = bind(cells, mini)
    assert {slot.method for slot in slots} == set(ALL) and len(slots) == len(cells)
    assert {job.training.method for job in jobs if job.training} == set(ALL) - {ZERO_SHOT}, "each is trained"
    for slot in slots:
        known = slot.seen or slot.method not in CLOSED
        assert slot.applicable == known, f"{slot.method} on {slot.dataset} ({slot.classes})"
    assert {key for job in jobs for _, key in job.tests} == {slot.key for slot in slots if slot.applicable}
    assert carried(cells, mini) == (cells, [])


def test_all_is_what_the_backbone_can_carry(mini: Context) -> None:
    clip = copy.copy(mini.clip)
    clip.not_staged = "its image tower is a ModifiedResNet, not a vision transformer"
    cells = evaluation("base-to-novel", MINI, ALL, (1, 2), datasets=("mini:digits",), shots=(2,))
    kept, said = carried(cells, Context(Bench("tiny"), clip))
    able = {name for name, cls in methods.registered().items() if not cls.edits_layers}
    assert {cell.method for cell in kept} == able and {*CHEAP, "clip-adapter"} <= able
    assert len(said) == len(ALL) - len(able), "each once"
    (line,) = (line for line in said if line.startswith("maple: "))
    assert f"With every backbone work: {', '.join(sorted(able))}." in line and "not a vision transformer" in line


def test_the_command_lists_all_and_says_what_is_left_out(cli: Cli, root: Path, tmp_path: Path) -> None:
    """MMA's published first layer for cross-dataset, 9 of 12, is none of the 8 that `tiny` has: a reason only where it is named."""
    words = ("bench", "cross-dataset", "--source", root, "--datasets", "mini:digits", "--seeds", 1, "--shots", 2, "--backbone", "tiny")
    code, printed, err = cli(*words, "--methods", "all", "--out", tmp_path / "out", "--dry-run")
    assert code == 0, err
    assert {line.split()[0] for line in printed.splitlines() if line.split()} >= set(ALL) - {"mma"}
    assert f"{len(CLOSED)} more are not applicable" in printed
    (said,) = (line for line in err.splitlines() if "left out: " in line)
    assert "mma: adapter_start is 9" in said and "give 1 to 8" in said and "recipe of mma (MMA's paper" in said
    code, _, err = cli(*words, "--methods", "zero-shot,mma", "--out", tmp_path / "out", "--dry-run")
    assert code == 2 and "adapter_start is 9" in err and "--set adapter_start=VALUE" in err and "left out" not in err


def test_a_folder_from_bench_to_report(cli: Cli, root: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "out", ("--seeds", 1, "--shots", 2, "--backbone", "tiny", "--workers", 0)
    code, _, err = cli("bench", "base-to-novel", "--datasets", root, "--methods", ",".join(CHEAP), *given, "--out", out)
    assert code == 0 and not contents(out, "failed"), err
    (plan,) = contents(out, "plans").values()
    applicable = {slot["key"] for slot in plan["slots"] if slot["applicable"]}
    assert set(scored(out)) == applicable and len(applicable) == 2 * 2 + len(CHEAP) - 2  # GDA and zero-shot know new classes, too
    code, _, err = cli("report", out, "--out", tmp_path / "report")
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "report" / "tables" / "base-to-novel.csv").open(encoding="utf-8")))
    means = {(row["method"], row["metric"]): row for row in rows if row["seed"] == "mean"}
    assert {method for method, _ in means} == set(CHEAP)
    for name in CHEAP:
        assert means[name, "base"]["value"]
        assert [means[name, metric]["applicable"] for metric in ("novel", "hm")] == (["0"] * 2 if name in CLOSED else ["1"] * 2), name
    ranking = (tmp_path / "report" / "tables" / "base-to-novel-ranking.md").read_text(encoding="utf-8")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert all(methods.get(name).title in ranking for name in CHEAP) and "n/a" in ranking and "n/a: not applicable" in page


def test_costs_of_all_methods(cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Measurement] = []

    def answer(what: Measurement) -> CostRow:
        asked.append(what)
        return cost_row(what.method, hm=None)

    monkeypatch.setattr(cost, "measure_apart", answer)
    code, _, err = cli("cost", "--methods", "all", "--data", root, "--backbone", "tiny", "--shots", 2, "--out", tmp_path / "out")
    assert code == 0, err
    assert [what.method for what in asked] == ALL
    assert [row["method"] for row in json.loads((tmp_path / "out" / COST_FILE).read_text())["rows"]] == ALL
