"""The study open-world: what is planned, trained once for two studies, tested and kept."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mmrl import methods, trust
from mmrl.cli.grid import _plans
from mmrl.clip import Clip
from mmrl.data import Dataset, Item
from mmrl.data import test_batches as batches_of
from mmrl.engine import Bench, Context, bind
from mmrl.engine.features import preprocess_of
from mmrl.engine.grid import ResultsFolder
from mmrl.engine.open_world import MOST_UNKNOWN, open_world_test, parts_of
from mmrl.engine.rules import FROZEN, MASS, ONE, STACKED
from mmrl.errors import UsageError
from mmrl.protocols import MINI, Cell, base_to_novel, evaluation, open_world
from mmrl.reports.records import OpenWorldRecord, RunRecord, TestRecord, harmonic_mean
from mmrl.reports.results import Results
from tests.unit.colours import clip_on_one_thread, colours
from tests.unit.conftest import Cli
from tests.unit.grids import COMMON, QUICK, compute, contents

METHODS = ("zero-shot", "mmrl", "gda", "linear-probe")
SETS = ("colours", "shades")


@pytest.fixture(scope="module")
def clip() -> Iterator[Clip]:
    yield from clip_on_one_thread()


def sets() -> dict[str, Dataset]:
    """Two data sets of the same pictures, the second of less common names."""
    shades = dataclasses.replace(colours(), name="shades", classes=("crimson", "emerald", "navy", "ash"))
    return {"colours": colours(), "shades": shades}


def bench_of(clip: Clip) -> Context:
    return Context(Bench("smallest"), clip, datasets=sets())


def cells(study=open_world, methods=METHODS) -> list[Cell]:
    own = {"mmrl": QUICK, "gda": {"neighbours": 4}}
    return study(methods, SETS, (1,), shots=(4,), own=own)


@pytest.fixture(scope="module")
def folder(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both studies, one after the other, in one folder."""
    out, context = tmp_path_factory.mktemp("open") / "results", bench_of(clip)
    for study in (base_to_novel, open_world):
        jobs, slots = bind(cells(study), context)
        for plan in _plans(slots, "own", ()):
            ResultsFolder(out).add_plan(plan)
        outcome, said = compute(jobs, context, out)
        assert not outcome.failed, said
    return out


def done(folder: Path) -> dict[tuple[str, str], TestRecord]:
    return {(run.method, test.dataset): test for run in Results(folder).runs.values() for test in run.tests if test.open_world}


def block(folder: Path, method: str, dataset: str = "colours") -> OpenWorldRecord:
    found = done(folder)[method, dataset].open_world
    assert found is not None
    return found


# ---- what is planned ----


def test_the_trainings_are_those_of_base_to_novel() -> None:
    mine = evaluation("open-world", MINI, ("zero-shot", "mmrl"), (1, 2), datasets=SETS)
    theirs = evaluation("base-to-novel", MINI, ("zero-shot", "mmrl"), (1, 2), datasets=SETS)
    assert [cell.training for cell in mine] == [cell.training for cell in theirs if cell.classes == "base"]
    assert {(cell.dataset, cell.others) for cell in mine} == {("colours", ("shades",)), ("shades", ("colours",))}
    assert {(cell.classes, cell.seen, cell.study) for cell in mine} == {("all", False, "open-world")}
    with pytest.raises(UsageError, match="open-world takes no --source"):
        evaluation("open-world", MINI, ("mmrl",), (1,), source="mini:objects")


def test_keys(clip: Clip) -> None:
    """Runs are base-to-novel's; scores are no one else's, and follow the other data sets."""
    context = bench_of(clip)
    jobs, slots = bind(cells(), context)
    theirs = {slot.run: slot for slot in bind(cells(base_to_novel), context)[1]}
    assert {slot.run for slot in slots} <= set(theirs)
    plain = [dataclasses.replace(cell, others=None) for cell in cells()]
    assert not {slot.key for slot in slots} & {slot.key for slot in bind(plain, context)[1]}
    alone = [dataclasses.replace(cell, others=()) for cell in cells()]
    assert not {slot.key for slot in slots} & {slot.key for slot in bind(alone, context)[1]}
    assert {slot.method for slot in slots if not slot.applicable} == {"linear-probe"} and len(jobs) == 6


# ---- what is computed ----


def test_trainings_are_reused(folder: Path) -> None:
    """The second study loaded the first one's adapters, and left its records as they were."""
    runs = [run for run in Results(folder).runs.values() if run.training]
    both = [run for run in runs if any(test.open_world for test in run.tests)]
    assert len(both) == 4 and all([test.classes for test in run.tests] == ["base", "novel", "all"] for run in both)


def test_numbers(folder: Path) -> None:
    for (method, dataset), test in done(folder).items():
        found, images = test.open_world, test.scores.count
        assert found is not None and images == 32
        shipped = next(each for each in found.rules if each.rule == found.shipped)
        assert shipped.base / 2 + shipped.novel / 2 == pytest.approx(test.scores.top1, abs=1e-12)  # as many images of either half
        mixed = next(each for each in found.calibration if each.classes == "mixed" and each.after == "nothing")
        assert mixed.ece == pytest.approx(test.scores.ece, abs=1e-12) and mixed.ece == pytest.approx(shipped.ece, abs=1e-12)
        assert sum(each.count for each in mixed.bins) == images
        assert {each.unknown for each in found.rejection} == set(SETS) and found.validation == 8
        assert {each.classes for each in found.coverage} == {"trained", "new", "mixed"}
        split = {each.classes: each.scores.top1 for run in Results(folder).runs.values() for each in run.tests
                 if run.method == method and each.dataset == dataset}  # fmt: skip
        assert (found.base, found.novel) == (split["base"], split["novel"])
        for each in found.rules:
            assert each.auc is not None and each.auc <= 1 and harmonic_mean(each.base, each.novel) <= 1


def test_what_applies_to_whom(folder: Path) -> None:
    two, one, none = (block(folder, method) for method in ("mmrl", "gda", "zero-shot"))
    assert two.shipped == MASS and len(two.rules) == 12 and two.class_temperature is not None
    assert [each.rule for each in one.rules] == [ONE, FROZEN, ONE + STACKED, FROZEN + STACKED] and one.class_temperature is None
    assert [each.rule for each in none.rules] == [ONE] and not none.held_out and none.validation_new == 0
    assert {each.rule for each in two.held_out} == {each.rule for each in two.rules} and two.validation_new == 8
    assert {each.after for each in two.calibration} == {"nothing", "temperature", "dac"}
    assert {each.after for each in one.calibration} == {"nothing", "temperature"}  # no text feature of its own
    assert {each.rule: each.bias is not None for each in two.rules} == {each.rule: each.rule.endswith(STACKED) for each in two.rules}


def test_against_scikit_learn(clip: Clip) -> None:
    """Rejection of a method by steps of one's own: logits of every image, one list at a time."""
    context = bench_of(clip)
    cell = next(cell for cell in cells() if cell.method == "zero-shot" and cell.dataset == "colours")
    method = methods.build("zero-shot", clip)
    record = open_world_test(method, parts_of(cell, context), context.bench)
    base = colours().restrict("base")
    with torch.no_grad():
        head = method.head(method.class_list(base.classes, base.template))

        def energy(dataset: Dataset, items: list[Item]) -> np.ndarray:
            passed = [method.logits(images, head, False) for images, _ in batches_of(dataset, items, preprocess_of(clip), 7)]
            return torch.cat(passed).logsumexp(1).double().numpy()

        known, new = energy(base, base.test), energy(colours().restrict("novel"), colours().restrict("novel").test)
    found = next(each for each in record.open_world.rejection if (each.unknown, each.score) == ("colours", "energy"))
    assert found.auroc == pytest.approx(roc_auc_score([1] * 16 + [0] * 16, [*known, *new]), abs=1e-12) and found.count == 16
    assert found.fpr95 == pytest.approx(trust.fpr_at_recall(known, new), abs=1e-12)


def test_nothing_is_fitted_on_test_images_or_new_classes(clip: Clip) -> None:
    """Validation images are of trained classes and no test images; what is fitted stays where other images go."""
    context = bench_of(clip)
    cell = next(cell for cell in cells() if cell.method == "zero-shot" and cell.dataset == "colours")
    parts = parts_of(cell, context)
    kept = [item.label for item in parts.validation]
    assert {parts.dataset.classes[label] for label in kept} == set(colours().restrict("base").classes)
    assert not {item.key for item in parts.validation} & {item.key for item in parts.test}
    fewer = dataclasses.replace(parts, test=parts.test[::2], validation_new=[], others={})
    found = [open_world_test(methods.build("zero-shot", clip), each, context.bench).open_world for each in (parts, fewer)]
    assert found[0].temperature == found[1].temperature is not None


def test_without_validation_images(clip: Clip) -> None:
    """Then nothing is calibrated, and rules without fitted values are left."""
    bare = {name: dataclasses.replace(dataset, val=[]) for name, dataset in sets().items()}
    context = Context(Bench("smallest"), clip, datasets=bare)
    cell = next(cell for cell in cells() if cell.method == "mmrl")
    found = open_world_test(methods.build("mmrl", clip, context.options_at_test(cell)), parts_of(cell, context), context.bench).open_world
    assert found is not None and found.validation == 0 and found.temperature is None and not found.coverage and not found.held_out
    assert len(found.rules) == 5 and {each.after for each in found.calibration} == {"nothing"}
    assert all(each.kept is None and each.rejected is None for each in found.rejection)


def test_of_large_sets_some_images_are_rejected(clip: Clip) -> None:
    many = dataclasses.replace(sets()["shades"], test=[Item(f"red/{number}", 0) for number in range(3 * MOST_UNKNOWN)])
    context = Context(Bench("smallest"), clip, datasets=sets() | {"shades": many})
    items = parts_of(cells()[0], context).others["shades"][1]
    assert len(items) == MOST_UNKNOWN and (items[0], items[-1]) == (many.test[0], many.test[-1])


# ---- what is kept ----


def test_other_records_are_written_as_before(folder: Path) -> None:
    tests = [test for run in contents(folder, "runs").values() for test in run["tests"]]
    assert {"open_world" in test for test in tests if test["classes"] != "all"} == {False}
    for run in contents(folder, "runs").values():
        assert RunRecord.model_validate(run).model_dump(mode="json", by_alias=True) == run


def test_packing_leaves_packed_files_as_they_are(folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(folder, tmp_path / "results"))
    before = Results(out).runs
    for path in (out / "runs").glob("*.json"):  # as before the second study
        run = json.loads(path.read_text())
        path.write_text(json.dumps(run | {"tests": [test for test in run["tests"] if test["classes"] != "all"]}))
    store = ResultsFolder(out)
    store.pack()
    first = {path.name: path.read_bytes() for path in (out / "packed").iterdir()}
    for run in before.values():
        store.write("runs", run.key, run)
    store.pack()
    after = {path.name: path.read_bytes() for path in (out / "packed").iterdir()}
    assert {name: after[name] for name in first} == first and set(after) - set(first) == {"open-world.jsonl"}
    found = Results(out).runs
    assert found.keys() == before.keys()
    later = out / "packed" / "open-world.jsonl"
    later.write_text(re.sub(r'"seconds":[0-9.e-]+', '"seconds":1234.5', later.read_text()))  # the same trainings made again, say
    told, read = later.read_bytes(), Results(out).runs
    assert told != after["open-world.jsonl"]
    store.pack()
    assert later.read_bytes() == told and Results(out).runs == read
    assert all({test.key for test in found[key].tests} == {test.key for test in run.tests} for key, run in before.items())
    assert all(found[key].training == run.training for key, run in before.items())


def test_command(cli: Cli, root: Path, tmp_path: Path) -> None:
    """Own photos have no validation images: it runs, and says what can be said."""
    arguments = ["bench", "open-world", "--methods", "zero-shot,mmrl", "--datasets", str(root), "--seeds", "1", "--shots", "2", *COMMON]
    code, _, err = cli(*arguments, "--out", tmp_path / "results")
    assert code == 0, err
    assert "0 trainings and 0 zero-shot passes to do" in cli(*arguments, "--out", tmp_path / "results", "--dry-run")[1]
    code, _, err = cli("bench", "no-such-study", "--out", tmp_path / "x")
    assert code == 2 and "open-world" in err
