"""One way from a command to its record: train, eval and bench agree; what decides a key, and what does not; every option is shown."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mmrl import methods
from mmrl.cli.grid import Grid
from mmrl.cli.main import app
from mmrl.clip import load_clip
from mmrl.data import load_dataset
from mmrl.engine import Context, bind
from mmrl.methods import registry
from mmrl.protocols import EVALUATIONS, Cell, base_to_novel
from mmrl.reports.records import RunRecord, TestRecord, TrainingRecord
from tests.contract.toy_method import ToyOffset
from tests.unit.conftest import Cli
from tests.unit.grids import COMMON, SETTINGS, contents, losses, planned, scored, scores, smallest

DATA = "mini:textures"
SHORT = ("--shots", 2, "--backbone", "tiny", "--workers", 0)
ONE_SEED = ("--seeds", 1, *SHORT)
VERBS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
BESIDE = ("calibration", "on_used_images", "wrong")  # what `eval --json` prints beside the record


# ---- the record ----


@pytest.fixture(scope="module")
def trained_and_benched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of `mmrl train`, and the results folder of `mmrl bench`, of the same run."""
    place = tmp_path_factory.mktemp("both")
    train = ["train", "--data", DATA, "--classes", "base", *SHORT, *SETTINGS, "--quiet", "--out", place / "run"]
    bench = ["bench", "base-to-novel", "--mini", "--datasets", DATA, "--methods", "zero-shot,mmrl", *ONE_SEED, *SETTINGS]
    for words in (train, [*bench, "--out", place / "grid"]):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
    return place / "run", place / "grid"


@pytest.fixture(scope="module")
def benched(trained_and_benched: tuple[Path, Path]) -> dict[str, Any]:
    """The record of the training, as the grid wrote it."""
    (record,) = [run for run in contents(trained_and_benched[1], "runs").values() if run["training"]]
    return record


@pytest.fixture
def evaluated(cli: Cli, trained_and_benched: tuple[Path, Path]) -> dict[str, dict[str, Any]]:
    """What `mmrl eval --json` prints of either half, with batches as large as the others'."""
    found = {}
    for classes in ("base", "novel"):
        code, printed, err = cli("eval", trained_and_benched[0], "--classes", classes, "--batch-size", 100, "--workers", 0, "--json")
        assert code == 0, err
        found[classes] = {key: value for key, value in json.loads(printed).items() if key not in BESIDE}
    return found


def by_classes(record: dict[str, Any], what: str) -> dict[str, Any]:
    return {test["classes"]: test[what] for test in record["tests"]}


def test_train_eval_and_bench_write_one_kind_of_record(
    trained_and_benched: tuple[Path, Path], benched: dict[str, Any], evaluated: dict[str, dict[str, Any]]
) -> None:
    trained = json.loads((trained_and_benched[0] / "run.json").read_text())
    zero = [run for run in contents(trained_and_benched[1], "runs").values() if not run["training"]]
    for record in (trained, benched, *zero, *evaluated.values()):
        assert record["schema"] == "mmrl.run/2" and RunRecord.model_validate(record)
        assert set(record) == {field.alias or name for name, field in RunRecord.model_fields.items()}
        assert all(set(test) == set(TestRecord.model_fields) - {"open_world"} for test in record["tests"])
        assert not record["training"] or set(record["training"]) == set(TrainingRecord.model_fields)
    assert len(zero) == 1 and len(trained["tests"]) == len(benched["tests"]) == 2


def test_the_same_run_has_the_same_key_and_scores(
    trained_and_benched: tuple[Path, Path], benched: dict[str, Any], evaluated: dict[str, dict[str, Any]]
) -> None:
    run, grid = trained_and_benched
    trained = json.loads((run / "run.json").read_text())
    for name in ("key", "method", "title", "backbone", "backbone_hash"):
        assert trained[name] == benched[name] == evaluated["base"][name] == evaluated["novel"][name], name
    ours, theirs = ({**record["training"], "seconds": 0, "environment": 0, "options": 0} for record in (trained, benched))
    assert ours == theirs and ours["history"]
    values = [{option["key"]: option["value"] for option in record["training"]["options"]} for record in (trained, benched)]
    assert values[0] == values[1]
    assert by_classes(trained, "key") == by_classes(benched, "key")
    (zero,) = [each for each in contents(grid, "runs").values() if not each["training"]]
    for classes, record in evaluated.items():
        (test,) = record["tests"]
        assert record["training"] == trained["training"]
        assert test["scores"] == by_classes(trained, "scores")[classes] == by_classes(benched, "scores")[classes]
        assert test["zero_shot"] == by_classes(trained, "zero_shot")[classes] == by_classes(zero, "scores")[classes]
        assert by_classes(benched, "zero_shot")[classes] is None  # in a grid it is a run of its own
        for name in ("dataset", "data", "seen", "template", "options", "split"):
            assert test[name] == by_classes(trained, name)[classes] == by_classes(benched, name)[classes], name


def test_eval_writes_what_it_prints(cli: Cli, trained_and_benched: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    code, printed, err = cli("eval", trained_and_benched[0], "--classes", "base", "--workers", 0, "--json", "--out", out)
    shown, written = json.loads(printed), json.loads(out.read_text())
    assert code == 0 and shown == written | {key: shown[key] for key in BESIDE}, err


# ---- keys ----


def runs_of(cells: list[Cell], context: Context) -> dict[str, set[str]]:
    """Keys of runs and tests, by method."""
    found: dict[str, set[str]] = {}
    for slot in bind(cells, context)[1]:
        found.setdefault(slot.method, set()).update((slot.run, slot.key))
    return found


def test_keys_do_not_depend_on_the_other_methods_asked_for(root: Path) -> None:
    others = ("zero-shot", "mmrlpp", "linear-probe", "tip-adapter", ToyOffset.name)

    def keys(*names: str) -> dict[str, set[str]]:
        return runs_of(base_to_novel(names, (str(root),), (1, 2), shots=(2,)), smallest())

    together = keys(*others, "mmrl")
    assert keys("mmrl") == {"mmrl": together["mmrl"]}
    for name in others:
        assert keys(name) == {name: together[name]}
    assert sum(map(len, together.values())) == len(set().union(*together.values()))


def test_keys_do_not_depend_on_the_methods_there_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = runs_of(planned(root, methods=("mmrl",)), smallest())
    monkeypatch.setattr(registry, "_REGISTRY", {"mmrl": methods.get("mmrl")})
    assert runs_of(planned(root, methods=("mmrl",)), smallest()) == before


def test_a_recipe_decides_its_own_methods_keys_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = base_to_novel(("mmrl", ToyOffset.name), (str(root),), (1,), shots=(2,))
    before = runs_of(cells, smallest())
    monkeypatch.setattr(ToyOffset, "recipe", {"rules": [{"source": "elsewhere", "method": {"scale": 0.3}}]})
    after = runs_of(cells, smallest())
    assert after["mmrl"] == before["mmrl"] and not after[ToyOffset.name] & before[ToyOffset.name]


def test_precision_changes_the_training_alone(cli: Cli, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot,mmrl", "--seeds", 1, "--shots", 2, "--out", out, *COMMON)
    assert cli(*words)[0] == 0
    first, before = losses(out), scores(out)
    code, printed, err = cli(*words, "--precision", "bf16")
    assert code == 0 and "4 scores, 2 of them computed already; 1 training and 0 zero-shot passes to do" in printed, err
    assert before.items() < scores(out).items() and len(scores(out)) == 6
    (fp32,), (bf16,) = set(first), set(losses(out)) - set(first)
    run = contents(out, "runs")[bf16]
    assert {option["key"]: option["value"] for option in run["training"]["options"]}["precision"] == "bf16"
    ours, theirs = ([row["loss"] for row in losses(out)[key]] for key in (bf16, fp32))
    assert ours != theirs and ours == pytest.approx(theirs, rel=0.1)
    for test in run["tests"]:  # of the adapter alone, which knows of no precision
        options = ("--data", told_apart(root, tmp_path), "--classes", test["classes"], "--batch-size", 100, "--workers", 0, "--json")
        code, printed, err = cli("eval", out / "work" / bf16, *options)
        (again,) = json.loads(printed)["tests"]
        assert code == 0 and again["scores"] == test["scores"], err


def told_apart(root: Path, place: Path) -> Path:
    """The images of the folder `root` that a grid tests on, as one that says so."""
    folder, dataset = place / root.name, load_dataset(str(root), test_share=0.5)
    for part, items in (("train", dataset.train), ("test", dataset.test)):
        for item in items:
            (folder / part / item.key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / item.key, folder / part / item.key)
    return folder


# ---- a method from outside ----


def test_bench_of_a_method_from_outside_takes_its_own_recipe(cli: Cli, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", ToyOffset.name, *ONE_SEED, "--out", out)
    code, printed, err = cli(*words)
    assert code == 0 and "1 training and 0 zero-shot passes to do" in printed and "Toy" in printed, err
    (run,) = contents(out, "runs").values()
    options = {option["key"]: (option["value"], option["source"]) for option in run["training"]["options"]}
    assert options["scale"] == (0.2, "nowhere") and options["lr"] == (0.01, "nowhere") and options["epochs"] == (2, "nowhere")
    assert options["weight_decay"][1] == "built-in default"
    assert (run["method"], run["title"], run["training"]["trained_parameters"]) == (ToyOffset.name, "Toy", load_clip("tiny").embed_dim)
    assert {test["classes"]: test["options"] for test in run["tests"]} == {"base": {"scale": 0.2}, "novel": {"scale": 0.2}}
    code, printed, err = cli(*words, "--set", "lr=0.5", "--set", "scale=0.4")
    assert code == 0 and "2 scores, 0 of them computed already; 1 training and 0" in printed, err
    (other,) = [each for key, each in contents(out, "runs").items() if key != run["key"]]
    options = {option["key"]: option["value"] for option in other["training"]["options"]}
    assert (options["scale"], options["lr"], options["epochs"]) == (0.4, 0.5, 2) and len(scored(out)) == 4


# ---- what the command shows ----


@pytest.mark.parametrize("verb", ["bench", "ablate"])
def test_every_option_of_a_grid_is_in_the_help(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    options = {each.name: each.metadata["option"] for each in fields(Grid)}
    assert len(options) >= 18
    words = shown.output.replace(",", " ").split()
    for name, option in options.items():
        assert option.param_decls and option.help, name
        assert all(declared in words for declared in option.param_decls), name
        assert all(word in shown.output for word in option.help.split()), name


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_lists_its_options(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "160"})
    words = shown.output.replace(",", " ").split()
    options = [name for each in VERBS[verb].params if each.param_type_name == "option" for name in each.opts]
    assert shown.exit_code == 0 and [name for name in options if name not in words] == []


@pytest.mark.parametrize("protocol", EVALUATIONS)
@pytest.mark.parametrize("method", methods.names())
def test_config_show_of_every_method_and_protocol(cli: Cli, method: str, protocol: str) -> None:
    words = ("config", "show", "--method", method, "--protocol", protocol)
    code, printed, err = cli(*words)
    assert code == 0 and "where from" in printed and not err, err
    code, printed, err = cli(*words, "--json")
    shown = json.loads(printed)
    assert code == 0 and not err and all(set(setting) == {"section", "key", "value", "source"} for setting in shown)
    assert {setting["key"] for setting in shown if setting["section"] == "method"} == set(methods.get(method).Options.model_fields)
    assert all(setting["source"] for setting in shown)
