"""`mmrl bench` and `mmrl ablate` as a user meets them: one results folder, filled step by step, and what is refused."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrl import files
from mmrl.cli.main import run
from tests.unit.grids import COMMON, contents, losses, photos, scored, scores, times

Bench = Callable[..., tuple[int, str, str]]
SHORT = ("--seeds", "1", "--shots", "2")
SMALLEST = COMMON[:4]  # without options of methods and of training


@pytest.fixture
def mmrl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs the command; gives its exit code, what it printed, and its errors."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmrl", *map(str, words)])
        code = 0
        try:
            run()
        except SystemExit as left:
            code = int(left.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("DATA", raising=False)
    return call


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tests of the first part fill, in their order."""
    return tmp_path_factory.mktemp("bench") / "out"


def test_a_dry_run_writes_no_plan_and_no_run(mmrl: Bench, root: Path, out: Path) -> None:
    code, printed, _ = mmrl("bench", "base-to-novel", "--datasets", root, *SHORT, "--out", out, *COMMON, "--dry-run")
    assert code == 0 and "6 scores, 0 of them computed already; 2 trainings and 1 zero-shot pass to do" in printed
    assert not (out / "plans").exists() and not (out / "runs").exists()


def test_bench_and_the_same_again(mmrl: Bench, root: Path, out: Path) -> None:
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot,mmrl", *SHORT, "--out", out, *COMMON)
    code, printed, _ = mmrl(*words)
    assert code == 0 and "1 training and 1 zero-shot pass to do" in printed and "MMRL" in printed
    (plan,) = contents(out, "plans").values()
    assert plan["suite"] == "own" and {slot["key"] for slot in plan["slots"]} == set(scores(out)) and len(scores(out)) == 4
    before = times(out, "runs", "work")
    code, printed, _ = mmrl(*words)
    assert code == 0 and "4 scores, 4 of them computed already; 0 trainings and 0 zero-shot passes" in printed and "MMRL" in printed
    assert before == times(out, "runs", "work")


def test_a_changed_option_is_computed_beside_the_others(mmrl: Bench, root: Path, out: Path) -> None:
    before = scores(out)
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "mmrl", *SHORT, "--out", out, *COMMON)
    code, printed, _ = mmrl(*words, "--set", "lam=2")
    assert code == 0 and "2 scores, 0 of them computed already; 1 training and 0" in printed
    assert before.items() < scores(out).items() and len(scores(out)) == 6
    assert len(contents(out, "plans")["base-to-novel"]["slots"]) == 6


def test_ablate_shares_the_unchanged_training_with_bench(mmrl: Bench, root: Path, out: Path) -> None:
    before = set(losses(out))
    code, printed, _ = mmrl("ablate", "variants", "--datasets", root, *SHORT, "--out", out, *COMMON)
    assert code == 0 and "14 scores, 2 of them computed already; 5 trainings" in printed  # of the unchanged one, two rows are to be tested
    assert len(set(losses(out)) - before) == 4 and before < set(losses(out))
    slots = contents(out, "plans")["variants"]["slots"]
    found = scored(out)
    tests = {(slot["variant"].split(",")[0], slot["classes"]): found[slot["key"]] for slot in slots}
    assert tests["w/o DS1", "novel"]["scores"] == tests["full", "novel"]["scores"]  # new classes have the class token alone, as published
    assert tests["w/o DS2", "base"]["scores"] == tests["full", "base"]["scores"]
    assert tests["w/o DS1", "base"]["options"]["inference"] == "class"
    code, printed, _ = mmrl("ablate", "alpha", "--values", "0.7", "--datasets", root, *SHORT, "--out", out, *COMMON)
    assert code == 0 and "2 scores, 2 of them computed already; 0 trainings" in printed


def test_status_names_a_damaged_record_and_bench_makes_it_anew(mmrl: Bench, root: Path, out: Path) -> None:
    expected, broken = scores(out), sorted((out / "runs").glob("*.json"))[0]
    broken.write_text(broken.read_text()[:100])
    code, printed, _ = mmrl("status", out)
    assert code == 1 and "damaged: " in printed and broken.name in "".join(printed.split("\n"))
    bench = ("bench", "base-to-novel", "--methods", "zero-shot,mmrl")
    for words in (bench, (*bench, "--set", "lam=2"), ("ablate", "variants")):  # it is a run of one of them
        assert mmrl(*words, "--datasets", root, *SHORT, "--out", out, *COMMON)[0] == 0
    assert scores(out) == expected
    assert mmrl("status", out)[0] == 0


# Data that are not there, or broken


def test_missing_data_sets_are_left_out_where_asked(mmrl: Bench, root: Path, tmp_path: Path) -> None:
    words = ("bench", "base-to-novel", "--datasets", f"{root},{tmp_path}/none", "--methods", "zero-shot", *SHORT, *COMMON)
    code, _, err = mmrl(*words, "--out", tmp_path / "refused")
    assert code == 2 and "none does not exist" in err and not (tmp_path / "refused" / "plans").exists()
    code, printed, err = mmrl(*words, "--out", tmp_path / "out", "--skip-missing")
    assert code == 0 and "left out: " in err and "2 scores" in printed and len(scores(tmp_path / "out")) == 2
    code, _, err = mmrl(*words[:3], f"{tmp_path}/none", *words[4:], "--out", tmp_path / "nothing", "--skip-missing")
    assert code == 2 and "none of the data sets is there" in err


def test_a_broken_image_fails_its_own_data_set_until_it_is_mended(mmrl: Bench, root: Path, tmp_path: Path) -> None:
    bad, out = photos(tmp_path / "bad"), tmp_path / "out"
    good = {path: path.read_bytes() for path in (bad / "red").iterdir()}
    for path in good:
        path.write_bytes(b"\x89PNG nothing")
    words = ("bench", "base-to-novel", "--datasets", f"{bad},{root}", "--methods", "zero-shot", *SHORT, "--out", out, *COMMON)
    code, printed, err = mmrl(*words)
    assert code == 1 and "1 of 2 trainings and zero-shot passes failed, 0 were left undone" in err and "mmrl status" in err
    assert "Traceback" not in err and len(scores(out)) == 3 and len(contents(out, "failed")) == 1
    assert mmrl("status", out)[0] == 1
    for path, content in good.items():
        path.write_bytes(content)
    code, printed, _ = mmrl(*words)
    assert code == 0 and "4 scores, 3 of them computed already" in printed and not contents(out, "failed")
    assert mmrl("status", out)[0] == 0


@pytest.mark.parametrize("left", ["missing", "empty"])
def test_missing_images_are_told_before_anything_is_computed(mmrl: Bench, tmp_path: Path, left: str) -> None:
    data, other = photos(tmp_path / "data"), photos(tmp_path / "other")
    parts = {file: "train" if int(file.stem) < 4 else "test" for file in sorted(data.rglob("*.png"))}
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name},{part}" for file, part in parts.items()]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    for name in ("red/7.png", "red/8.png", "blue/9.png"):
        (data / name).unlink() if left == "missing" else (data / name).write_bytes(b"")
    given = ("--methods", "zero-shot,linear-probe", *SHORT, "--out", tmp_path / "out", *SMALLEST)
    words = ("bench", "base-to-novel", "--datasets", f"{tmp_path}/list.csv,{other}", *given)
    code, _, err = mmrl(*words)
    said = "does not exist" if left == "missing" else "is not an image that can be read"
    first = "data/blue/9.png"
    assert code == 2 and first in err and said in err and "So are 2 more of 28 images" in err and "--skip-broken" in err, err
    assert not (tmp_path / "out").exists() and err.count("\n") == 1
    code, _, err = mmrl("train", "--data", tmp_path / "list.csv", "--method", "linear-probe", "--shots", 2, "--backbone", "tiny",
                        "--out", tmp_path / "run")  # fmt: skip
    assert code == 2 and first in err and said in err and not (tmp_path / "run").exists()
    assert mmrl(*words, "--skip-broken")[0] == 0
    assert len(scores(tmp_path / "out")) == 2 * 3
    for name in ("red/7.png", "red/8.png", "blue/9.png"):
        (data / name).write_bytes((other / name).read_bytes())
    assert mmrl(*words, "--skip-broken")[0] == 0


def test_classes_with_fewer_images_than_shots_are_noted_once(mmrl: Bench, root: Path, tmp_path: Path) -> None:
    few = photos(tmp_path / "few")
    for number in range(3, 10):
        (few / "green" / f"{number}.png").unlink()
    words = ("bench", "few-shot", "--methods", "linear-probe", "--seeds", "1,2", "--test-share", "0.3", "--out", tmp_path / "out")
    for more in (("--dry-run",), ()):
        code, _, err = mmrl(*words, "--datasets", f"{few},{root}", "--shots", "1,2,4", *SMALLEST, *more)
        assert code == 0, err
        (said,) = (line for line in err.splitlines() if "train on all images" in line)
        assert said.startswith("note: 1 class of ") and said.endswith("train on all images there are, fewer than 4: green (2)")


def test_a_full_disk_is_one_message(mmrl: Bench, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot", *SHORT, *SMALLEST)
    code, _, err = mmrl(*words, "--out", tmp_path / "out")
    assert code == 1 and "cannot write" in err and "No space left on device" in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_jobs_give_what_one_gives(mmrl: Bench, root: Path, out: Path, tmp_path: Path) -> None:
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot,mmrl", *SHORT, *COMMON)
    assert mmrl(*words, "--out", out)[0] == 0  # there already, where the tests before this one ran in this process
    code, _, err = mmrl(*words, "--out", tmp_path, "--jobs", 2)
    assert code == 0, err
    assert len(scores(tmp_path)) == 4 and scores(tmp_path).items() <= scores(out).items()
    assert losses(tmp_path).items() <= losses(out).items()


# Mistakes

BAD = [
    (("bench", "base-to-nove"), "Did you mean 'base-to-novel'"),
    (("ablate", "lamda"), "unknown ablation 'lamda'. Did you mean 'lambda'"),
    (("bench", "few-shot", "--methods", "mmrl,mmrlp"), "unknown method 'mmrlp'. Did you mean"),
    (("bench", "few-shot", "--methods", "mmrl,mmrl"), "each once"),
    (("bench", "few-shot", "--methods", ""), "give names separated by commas"),
    (("ablate", "alpha", "--method", "mmlr"), "Did you mean 'mmrl'"),
    (("bench", "few-shot", "--mini", "--datasets", "mini:digit"), "mini:digits"),
    (("bench", "few-shot", "--mini", "--seeds", "1,x"), "--seeds is '1,x'"),
    (("bench", "few-shot", "--mini", "--seeds", "1,1"), "--seeds is '1,1'"),
    (("bench", "few-shot", "--mini", "--seeds", "-1"), "--seeds is '-1'"),
    (("bench", "few-shot", "--mini", "--shots", "0"), "--shots is '0'"),
    (("bench", "few-shot", "--mini", "--shots", "2,2"), "--shots is '2,2'"),
    (("ablate", "alpha", "--mini", "--shots", "0"), "--shots"),
    (("ablate", "alpha", "--mini", "--values", "0.1,0.1"), "--values is '0.1,0.1'"),
    (("ablate", "alpha", "--mini", "--datasets", "mini:digits", "--values", "2,x"), "alpha is 'x'"),
    (("ablate", "all", "--mini", "--values", "1"), "--values needs one ablation"),
    (("ablate", "variants", "--mini", "--values", "1"), "takes no --values"),
    (("ablate", "layers", "--mini", "--datasets", "mini:digits", "--values", "9"), "has 8 layers; give 1 to 8"),
    (("bench", "few-shot", "--mini", "--source", "dtd"), "few-shot takes no --source"),
    (("bench", "few-shot", "--mini", "--engine", "rya"), "unknown engine 'rya'. Did you mean 'ray'"),
    (("bench", "few-shot", "--mini", "--set", "lam"), "expected KEY=VALUE"),
    (("bench", "few-shot", "--mini", "--datasets", "mini:digits", "--set", "lma=2"), "did you mean 'lam'"),
    (("bench", "few-shot", "--mini", "--datasets", "mini:digits", "--precision", "fp8"), "precision is 'fp8'"),
    (("bench", "few-shot", "--mini", "--jobs", "0"), "--jobs"),
    (("bench", "few-shot", "--datasets", "dtd"), "Pass it with --root"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_a_mistake_is_one_message_and_computes_nothing(mmrl: Bench, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    backbone = () if "--mini" in words else ("--backbone", "tiny")
    code, _, err = mmrl(*words, *backbone, "--out", tmp_path / "out")
    assert code == 2 and message in err, err
    assert "Traceback" not in err and not (tmp_path / "out" / "runs").exists()


def test_two_mistakes_are_reported_together(mmrl: Bench, tmp_path: Path) -> None:
    words = (
        "bench",
        "base-to-novel",
        "--mini",
        "--datasets",
        f"mini:digits,mini:digts,{tmp_path}/none",
        "--set",
        "alpha=7",
        "--set",
        "lr=-1",
    )
    code, _, err = mmrl(*words, "--out", tmp_path / "out")
    assert code == 2 and "Did you mean 'mini:digits'" in err and f"{tmp_path}/none" in err and "alpha is 7" in err


def test_folders_that_are_no_place_for_results(mmrl: Bench, root: Path, tmp_path: Path) -> None:
    words = ("bench", "base-to-novel", "--datasets", root, "--methods", "zero-shot", *SMALLEST, "--out")
    (tmp_path / "file").write_text("")
    assert (mmrl(*words, tmp_path / "file")[0], mmrl(*words, root)[0]) == (2, 2)
    old = tmp_path / "old"
    old.mkdir()
    (old / "results.json").write_text('{"format": "mmrl.results/0"}')
    for call in (words, ("status",), ("report",)):
        code, _, err = mmrl(*call, old)
        assert code == 1 and "mmrl.results/0" in err and len(err.strip().splitlines()) == 1
