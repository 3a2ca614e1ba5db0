"""Methods that know only the classes they are trained on: what is planned, computed, printed and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmrl import methods
from mmrl.engine import Context, bind
from mmrl.engine.grid import ResultsFolder
from mmrl.protocols import Cell, base_to_novel, cross_dataset, domain_generalisation, few_shot
from mmrl.reports.plans import Plan, Slot
from mmrl.reports.status import status
from tests.unit.conftest import Cli
from tests.unit.grids import compute, contents, scored

CLOSED = [name for name, cls in methods.registered().items() if not cls.open_vocabulary(cls.Options())]
COOP = {"n_ctx": 4, "csc": True, "epochs": 1, "warmup_epochs": 0}  # a context for each class; the small text tower reads 16 tokens
SHORT = ("--shots", 2, "--backbone", "tiny", "--workers", 0)


@pytest.fixture(scope="module")
def target(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set."""
    return Path(shutil.copytree(root, tmp_path_factory.mktemp("data") / "target"))


@pytest.fixture(scope="module")
def probe(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a linear probe on the base classes, blue and green."""
    from mmrl import api

    out = tmp_path_factory.mktemp("probe") / "run"
    api.train(root, method="linear-probe", backbone="tiny", shots=2, classes="base", out=out, progress=False, workers=0)
    return out


def every_study(root: Path, target: Path, method: str, **options: Any) -> list[Cell]:
    at, to, given = str(root), (str(target),), {"shots": (2,), "overrides": options}
    return [
        *base_to_novel((method,), (at,), (1,), **given),
        *few_shot((method,), (at,), (1,), **given),
        *cross_dataset((method,), at, to, (1,), **given),
        *domain_generalisation((method,), at, to, (1,), **given),
    ]


def test_some_methods_are_closed() -> None:
    assert {"linear-probe", "lpp", "tip-adapter", "tip-adapter-f"} <= set(CLOSED)
    assert not {"zero-shot", "mmrl", "mmrlpp", "coop"} & set(CLOSED)


@pytest.mark.parametrize(("method", "options"), [*((name, {}) for name in CLOSED), ("coop", COOP), ("plot", COOP)], ids=str)
def test_only_what_was_trained_on_is_applicable(context: Context, root: Path, target: Path, method: str, options: dict[str, Any]) -> None:
    cells = every_study(root, target, method, **options)
    jobs, slots = bind(cells, context)
    applicable = {(slot.study, slot.dataset == str(target), slot.classes): slot.applicable for slot in slots}
    assert applicable == {
        ("base-to-novel", False, "base"): True, ("base-to-novel", False, "novel"): False, ("few-shot", False, "all"): True,
        ("cross-dataset", False, "all"): True, ("cross-dataset", True, "all"): False,
        ("domain-generalisation", False, "all"): True, ("domain-generalisation", True, "all"): False,
    }  # fmt: skip
    tested = {key for job in jobs for _, key in job.tests}
    assert tested == {slot.key for slot in slots if slot.applicable}
    assert not tested & {slot.key for slot in slots if not slot.applicable}
    assert {slot.run for slot in slots} == {job.key for job in jobs} and all(slot.key for slot in slots)
    assert all(cell.seen for job in jobs for cell, _ in job.tests)


@pytest.mark.parametrize("method", ["mmrl", "coop"])
def test_an_open_method_is_tested_everywhere(context: Context, root: Path, target: Path, method: str) -> None:
    cells = every_study(root, target, method, **({"n_ctx": 4} if method == "coop" else {}))
    jobs, slots = bind(cells, context)
    assert all(slot.applicable for slot in slots)
    assert {key for job in jobs for _, key in job.tests} == {slot.key for slot in slots}


def test_what_is_not_applicable_is_neither_to_do_nor_done(context: Context, root: Path, tmp_path: Path) -> None:
    methods_ = ("zero-shot", *CLOSED)
    jobs, slots = bind(base_to_novel(methods_, (str(root),), (1, 2), shots=(2,)), context)
    store = ResultsFolder(tmp_path)
    store.add_plan(Plan(study="base-to-novel", suite="own", slots=tuple(slots)))
    count = 2 + 2 * len(CLOSED)  # both halves of zero-shot; the base half of each of two seeds
    assert len(slots) == 2 + 4 * len(CLOSED)
    assert status(tmp_path).total == {"done": 0, "running": 0, "failed": 0, "cancelled": 0, "to do": count}
    outcome, _ = compute(jobs, context, tmp_path)
    assert not outcome.failed and not outcome.left
    assert status(tmp_path).total == {"done": count, "running": 0, "failed": 0, "cancelled": 0, "to do": 0}
    assert {test["classes"] for run in contents(tmp_path, "runs").values() if run["training"] for test in run["tests"]} == {"base"}


def test_bench_prints_that_it_is_not_applicable(cli: Cli, root: Path, target: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", ("--methods", "zero-shot,linear-probe,tip-adapter", "--seeds", 1)
    code, printed, err = cli("bench", "base-to-novel", "--datasets", root, *names, *SHORT, "--out", out)
    assert code == 0 and "4 scores, 0 of them computed already; 2 trainings and 1 zero-shot pass to do" in printed, err
    rows = {title: [line for line in printed.splitlines() if title in line] for title in ("Linear probe", "Tip-Adapter", "zero-shot CLIP")}
    assert [line.count("n/a") for line in rows["Linear probe"]] == [3, 2]  # novel, and both means; in the table by data set, HM
    assert [line.count("n/a") for line in rows["Tip-Adapter"]] == [3, 2]
    assert rows["zero-shot CLIP"] and not any("n/a" in line for line in rows["zero-shot CLIP"])
    assert "n/a: not applicable" in printed
    code, printed, err = cli("bench", "cross-dataset", "--source", root, "--datasets", target, *names, *SHORT, "--out", out)
    assert code == 0 and "n/a" in printed, err
    code, printed, _ = cli("status", out, "--json")
    assert code == 0 and json.loads(printed)["studies"] == {
        "base-to-novel": {"done": 4, "running": 0, "failed": 0, "cancelled": 0, "to do": 0},
        "cross-dataset": {"done": 4, "running": 0, "failed": 0, "cancelled": 0, "to do": 0},
    }
    slots = [Slot(**each) for plan in contents(out, "plans").values() for each in plan["slots"]]
    assert sum(not slot.applicable for slot in slots) == 4 and set(scored(out)) == {slot.key for slot in slots if slot.applicable}
    code, printed, _ = cli("bench", "base-to-novel", "--datasets", root, *names, *SHORT, "--out", out)
    assert code == 0 and "4 scores, 4 of them computed already; 0 trainings and 0 zero-shot passes to do" in printed and "n/a" in printed


def test_a_run_is_tested_on_what_it_knows(probe: Path, cli: Cli, root: Path, tmp_path: Path) -> None:
    record = json.loads((probe / "run.json").read_text())
    assert [(test["classes"], test["seen"]) for test in record["tests"]] == [("base", True)]
    words = ("--data", root, "--method", "tip-adapter", "--classes", "base", *SHORT, "--quiet")
    code, printed, err = cli("train", *words, "--out", tmp_path / "run")
    assert code == 0 and "base classes" in printed and "novel classes" not in printed, err
    assert "method 'tip-adapter' knows only the classes it is trained on, so it is not tested on the others" in err


@pytest.mark.parametrize("names", [("green", "blue"), ("BLUE", "green"), ("green",)], ids=",".join)
def test_known_names_in_any_order_are_classified(probe: Path, cli: Cli, root: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names))
    code, printed, err = cli("predict", probe, root / "green" / "0.png", "--classes", tmp_path / "names.txt", "--json")
    first, *others = json.loads(printed)["predictions"]
    assert code == 0 and first["name"] == "green" and first["trained"] and len(others) == len(names) - 1, err


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "{probe}", "{root}/red/0.png", "--classes", "blue,red"),
        ("predict", "{probe}", "{root}/red/0.png", "--classes", "red,purple,blue", "--json"),
        ("eval", "{probe}", "--data", "{root}", "--classes", "novel"),
        ("eval", "{probe}", "{root}", "--among", "data", "--json"),
    ],
    ids=" ".join,
)
def test_a_new_class_is_one_clear_error(probe: Path, cli: Cli, root: Path, words: tuple[str, ...]) -> None:
    code, printed, err = cli(*(word.format(probe=probe, root=root) for word in words))
    (said,) = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and not printed and "Traceback" not in err
    assert said.startswith("error: method 'linear-probe' knows only the 2 classes it was trained on, and '")
    assert "' is not one of them. It knows: blue, green. " in said
    able = said.partition("open vocabulary: ")[2].rstrip(".").split(", ")
    assert {"gda", "mmrl", "coop", "zero-shot"} <= set(able) and not set(able) & set(CLOSED)


def test_in_python_too(probe: Path, root: Path) -> None:
    """Long lists are cut."""
    from mmrl import api, errors

    with pytest.raises(errors.UsageError, match=r"and 'red' is not one of them\. It knows: blue, green\. .* open vocabulary: .*mmrl"):
        api.from_pretrained(probe).predict(root / "red" / "0.png", ["red", "blue"])
    many = methods.known.new_class("gda", [f"class {i}" for i in range(30)], "red")
    assert "class 8, class 9 and 20 more. " in str(many) and "class 10," not in str(many)
