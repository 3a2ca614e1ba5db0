"""`--dry-run`: what would be computed and how long it may take, without the weights of a named backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrl import methods
from mmrl.clip import load, outline
from mmrl.reports.pace import Pace, images_seen, pool_of
from mmrl.reports.results import Results
from tests import results_folder as made
from tests.unit.grids import COMMON
from tests.unit.test_cli_bench import Bench, mmrl  # noqa: F401  (a fixture)

NAME = "ViT-B-32-quickgelu/openai"


def test_a_named_backbone_is_not_loaded(mmrl: Bench, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("mmrl.clip.load_clip", lambda *_, **__: pytest.fail("weights were loaded"))
    words = ("bench", "base-to-novel", "--datasets", root, "--seeds", "1,2", "--shots", "2", "--out", tmp_path / "out", "--dry-run")
    code, printed, err = mmrl(*words, "--methods", "zero-shot,linear-probe", "--backbone", NAME, "--workers", "0")
    assert code == 0, err
    assert "4 scores, 0 of them computed already; 2 trainings and 1 zero-shot pass to do" in printed
    assert "2 more are not applicable" in printed and "there is no estimate" in printed and "1,2" in printed
    code, _, err = mmrl(*words, "--methods", "mmrl", "--backbone", "ViT-B-32-quickgelu/open", "--workers", "0")
    assert code == 2 and "unknown weights of ViT-B-32-quickgelu 'open'" in err


def test_the_outline_has_the_layers_and_the_recorded_identity() -> None:
    clip = outline("ViT-B-32/openai", {NAME: "f" * 16})
    assert (clip.name, clip.identity, clip.vision.depth, clip.embed_dim) == (NAME, "f" * 16, 12, 512)
    assert sum(p.numel() for p in methods.build("coop", clip).parameters()) == 16 * 512
    assert outline(NAME, {}).identity != "f" * 16 and outline("tiny", {}).identity == load.load_clip("tiny").identity


def test_done_and_estimated_of_what_the_folder_has(mmrl: Bench, root: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot,mmrl", "--shots", "2", *COMMON)
    words = (*words, "--out", tmp_path / "out")
    assert mmrl(*words, "--seeds", "1")[0] == 0
    before = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    code, printed, _ = mmrl(*words, "--seeds", "1,2,3", "--dry-run", "--jobs", "2")
    assert code == 0 and "8 scores, 4 of them computed already; 2 trainings and 0 zero-shot passes to do" in printed
    assert "by 2 runs recorded on this machine" in printed and "with 2 processes" in printed
    assert before == {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    code, printed, _ = mmrl(*words, "--seeds", "1", "--dry-run")
    assert code == 0 and "0 trainings" in printed and "about" not in printed
    for path in (tmp_path / "out" / "runs").iterdir():  # as from another machine
        run = json.loads(path.read_text())
        for part in (*run["tests"], *([run["training"]] if run["training"] else [])):
            part["environment"]["hardware"]["cpu"] = "another processor"
        path.write_text(json.dumps(run))
    assert "there is no estimate" in mmrl(*words, "--seeds", "1,2", "--dry-run")[1]


def test_time_grows_with_the_images_that_pass(tmp_path: Path) -> None:
    slots = made.halves(methods=("mmrl", "zero-shot"), datasets=("mini:digits",), seeds=(1, 2))
    made.fill(made.make_results(tmp_path, slots), slots, seconds=60)
    here = {"device": "cpu", "cpu": "a processor", "gpu": None}
    pace = Pace(Results(tmp_path).runs.values(), here)
    assert pace.runs == 3 and pace.training("tiny", "mmrl", "elsewhere", 96) == pytest.approx(120)  # 48 images, one pass, took 60 s
    assert pace.test("tiny", "coop", "elsewhere", 600) == pytest.approx(12) and pace.test("other", "mmrl", "mini:digits", 1) is None
    assert pace.training("tiny", "coop", "mini:digits", 1) is None
    assert Pace(Results(tmp_path).runs.values(), here | {"gpu": "one"}).runs == 0
    assert images_seen({"epochs": 5}, 20) == 100 == images_seen({"epochs": 5, "iterations": 25, "batch_size": 2, "accumulate": 2}, 20)


def test_views_are_told_with_time_and_memory(mmrl: Bench, root: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "mmrl,coop", "--shots", "2", *COMMON, "--out", tmp_path / "out")
    words = (*words, "--set", "coop.n_ctx=4")
    code, printed, err = mmrl(*words, "--set", "views=1", "--dry-run")
    said = " ".join(printed.split())
    assert code == 0, err
    states, features = 4 * (17 * 192 + 128) * 4 / 2**30, 4 * 128 * 4 / 2**30  # of four images, in tiny
    for name, size in (("mmrl", states), ("coop", features)):
        assert f"views of {name} take up to {size:.2g} GiB a data set (in memory 2, in a file 16 more); its time is that without" in said
    assert mmrl(*words, "--set", "views=1")[0] == 0
    said = " ".join(mmrl(*words, "--set", "views=1", "--seeds", "1,2,3,4", "--dry-run")[1].split())
    assert "GiB a data set" in said and "its time is" not in said
    assert "views of" not in mmrl(*words, "--set", "views=2", "--dry-run")[1], "as many as epochs"


def test_a_pool_of_views_has_a_pace_of_its_own() -> None:
    assert pool_of({"epochs": 5}) == pool_of({"epochs": 5, "views": None}) == pool_of({"epochs": 5, "views": 5}) == ""
    assert pool_of({"epochs": 5, "views": 2}) == "2 views, 5 epochs"
    assert pool_of({"epochs": 5, "views": 5, "iterations": 7}) == "5 views, 7 steps"


def test_a_prompt_for_all_data_sets(mmrl: Bench, root: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot", "--out", tmp_path / "out", *COMMON)
    assert mmrl(*words)[0] == 0
    code, printed, err = mmrl(*words, "--template", "a drawing of a {}.", "--template", "{}.")
    assert code == 0 and "2 scores, 0 of them computed already" in printed, err
    assert "Prompt of all data sets: a drawing of a {}. | {}." in " ".join(printed.split())
    found = {str(test.template) for run in Results(tmp_path / "out").runs.values() for test in run.tests}
    assert len(found) == 2 and str(("a drawing of a {}.", "{}.")) in found
    plan = Results(tmp_path / "out").plans["base-to-novel"]
    assert len(plan.slots) == 2  # the scores of the other prompt have left the table
    code, _, err = mmrl(*words, "--template", "no place")
    assert code == 2 and "no place" in err
