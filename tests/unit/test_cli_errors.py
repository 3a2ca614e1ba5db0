"""What goes wrong outside: one line that names it, an exit code, and no traceback, whatever the system or a file does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mmrl.console import boundary
from mmrl.errors import LONGEST, MmrlError, Notice, UsageError
from tests.unit.conftest import Cli

LONG = "x" * 300
DEEP = "[" * 100_000
TRAIN = ("train", "--data", "{photos}", "--out", "{tmp}/o", "--shots", "2", "--backbone", "tiny")

BAD = [
    (("train", "--data", "~nosuchuser/photos", "--out", "{tmp}/o"), "'~nosuchuser/photos' begins with a user's home folder"),
    (("predict", "~nosuchuser", "{photo}"), "home folder that is not known"),
    (("train", "--data", f"./{LONG}", "--out", "{tmp}/o"), "is too long for the name of a file: at most 255 bytes"),
    (("predict", "{run}", f"{LONG}.jpg"), "is too long for the name of a file"),
    ((*TRAIN, "--draw", "/nonexistent"), "few-shot draw /nonexistent does not exist"),
    ((*TRAIN, "--draw", "/dev/zero"), "/dev/zero is a device or a pipe; give a regular file"),
    ((*TRAIN, "--draw", "{tmp}"), "is a folder; give a regular file"),
    ((*TRAIN, "--set", "seed=5"), "the options have seed 5, and the run has seed 1; give it once: --seed"),
    ((*TRAIN, "--set", "rep_tokens=999999999"), "rep_tokens is 999999999: input should be less than or equal to 1000"),
    ((*TRAIN, "--set", "epochs=99999999999999999999"), "epochs is 99999999999999999999"),
    ((*TRAIN, "--set", "lam=inf"), "lam is 'inf': input should be a finite number"),
    ((*TRAIN, "--set", "lam=Infinity"), "lam is 'Infinity': input should be a finite number"),
    ((*TRAIN, "--set", "lr=true"), "lr is True: input should be no true or false"),
    ((*TRAIN, "--set", "alpha=false"), "alpha is False: input should be no true or false"),
    ((*TRAIN, "--device", "meta"), "device 'meta' cannot be used here: it holds no numbers. Available: auto, cpu"),
    (("config", "show", "--data", "x"), "unknown data set 'x'"),
    (("train", "--data", "{tmp}/loop", "--out", "{tmp}/o"), "loop does not exist"),
    (("predict", "{run}", "{photo}", "--classes", "{tmp}/names.json"), "nested too deeply"),
    (("predict", "{run}", "{photo}", "--classes", f"{'y' * 1_000_000},{'y' * 1_000_000}"), r"\.\.\. [\d,]+ letters \.\.\."),
    (("report", "~nosuchuser"), "home folder that is not known"),
    (("status", f"{LONG}"), "is too long for the name of a file"),
    (("eval", "{run}", "--data", "{photos}", "--classifier", "clas"), "Did you mean 'class'"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a)[:70] for a, _ in BAD])
def test_one_line_and_exit_code_2(cli: Cli, photos: Path, trained: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    import re

    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "names.json").write_text(DEEP)
    names = {"photos": photos, "run": trained, "tmp": tmp_path, "photo": photos / "red_thing" / "0.jpg"}
    code, _, err = cli(*(a.format(**names) for a in arguments))
    said = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert code == 2 and re.search(message, err) and "Traceback" not in err, err[:500]
    assert len(said) == 1 and len(said[0]) < LONGEST + 200
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": [["a", Infinity]]}', "Infinity is no number in JSON"),
        ('{"train": [["\\ud800", 0]]}', "it is not UTF-8"),
        (DEEP, "nested too deeply"),
        ('{"dataset": "photos0", "shots": 1.5, "seed": 1, "classes": "all", "train": [], "val": [], "hash": ""}', "1.5 is no int"),
        ('{"dataset": "photos0", "shots": 1, "seed": true, "classes": "all", "train": [], "val": [], "hash": ""}', "True is no int"),
        ('{"dataset": "x", "shots": 1, "seed": 1, "classes": "all", "train": [["a", "0"]], "val": [], "hash": ""}', "'0' is no int"),
    ],
)
def test_odd_draw_files(cli: Cli, photos: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "draw.json").write_text(text)
    code, _, err = cli("train", "--data", photos, "--backbone", "tiny", "--out", tmp_path / "o", "--draw", tmp_path / "draw.json")
    assert code in (1, 2) and message in err and "Traceback" not in err and err.count("\n") == 1


def test_a_record_nested_too_deeply_stops_nothing(cli: Cli, tmp_path: Path) -> None:
    sets = "mini:digits,mini:textures"
    bench = ("bench", "base-to-novel", "--mini", "--methods", "zero-shot", "--datasets", sets, "--out", tmp_path / "r")
    assert cli(*bench)[0] == 0
    record = next((tmp_path / "r" / "runs").glob("*.json"))
    record.write_text(DEEP)
    code, printed, err = cli("status", tmp_path / "r")
    assert code == 1 and "nested too deeply" in " ".join(printed.split()) and "Traceback" not in err
    assert cli("report", tmp_path / "r", "--out", tmp_path / "report")[0] == 0
    assert cli(*bench)[0] == 0 and json.loads(record.read_text())["schema"] == "mmrl.run/2"


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **options.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, "-m", "mmrl", *map(str, arguments)], text=True, env=environment, stderr=subprocess.PIPE, **options
    )  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_on_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        ended = run("methods", stdout=full)
    assert ended.returncode == 1 and ended.stderr == "error: output: No space left on device.\n"


def test_a_name_that_the_terminal_cannot_show(trained: Path, photos: Path, tmp_path: Path) -> None:
    name = tmp_path / ("\xe9" + os.fsdecode(b"caf\xe9.jpg"))
    try:
        name.write_bytes((photos / "red_thing" / "0.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    for encoding in ("utf-8:strict", "ascii:strict"):
        ended = run("predict", trained, name, "--json", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": encoding})
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["image"].endswith("\xe9caf\udce9.jpg")


def test_ctrl_c_is_answered(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmrl.engine.grid.run_here", stopped)
    words = ("--mini", "--methods", "zero-shot", "--datasets", "mini:digits", "--out", tmp_path / "r")
    code, _, err = cli("bench", "base-to-novel", *words)
    assert code == 130 and err.endswith("what is done is kept; the same command again does what is missing\ninterrupted\n")


def test_an_interrupted_training_says_how_it_goes_on(cli: Cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmrl.api.train", stopped)
    words = ("train", "--data", photos, "--out", tmp_path / "o", "--shots", "2", "--backbone", "tiny")
    assert cli(*words)[::2] == (130, "interrupted\n")  # nothing was kept yet
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "training_state.bin").touch()
    said = f"what is trained so far is kept in {tmp_path / 'o'}; the same command with --resume goes on"
    assert cli(*words)[::2] == (130, f"{said}\ninterrupted\n")


def test_a_note_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        for text in ("one", "two", "one"):
            warnings.warn(text, Notice, stacklevel=1)

    boundary.guarded(command)
    assert capsys.readouterr().err == "note: one\nnote: two\n"


def test_debugging_shows_the_traceback() -> None:
    ended = run("predict", "nowhere", "nothing.jpg", stdout=subprocess.PIPE, env={"MMRL_DEBUG": "1"})
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "no such image: nothing.jpg" in ended.stderr
    assert run("predict", "nowhere", "nothing.jpg", stdout=subprocess.PIPE).stderr == "error: no such image: nothing.jpg. Check the path.\n"


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (UsageError("what"), "what", 2),
        (MmrlError("what"), "what", 1),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied.", 1),
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or directory.", 2),
        (OSError(36, "File name too long", b"y"), "y: File name too long.", 2),
        (OSError(28, "No space left on device"), "output: No space left on device.", 1),
        (MemoryError(), "there is not enough memory for this: MemoryError", 1),
        (RecursionError("deep"), "a file is nested too deeply to be read.", 1),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "text that cannot be read or written: 'utf-8' codec", 1),
        (RuntimeError("Expected all tensors\nC++ trace"), "Expected all tensors", 1),
    ],
)
def test_told(error: Exception, text: str, code: int) -> None:
    found = boundary.told(error)
    assert found is not None and found[0].startswith(text) and "\n" not in found[0] and found[1] == code


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError("x"), IndexError("x")])
def test_faults_of_the_program_are_not_hidden(error: Exception) -> None:
    assert boundary.told(error) is None


def test_brackets_in_names_are_text(cli: Cli, photos: Path, trained: Path, tmp_path: Path) -> None:
    place = tmp_path / "dir [b]"
    place.mkdir()
    photo = place / "x[red].jpg"
    photo.write_bytes((photos / "red_thing" / "0.jpg").read_bytes())
    code, printed, err = cli("predict", trained, photo, "--classes", "[/b],dog [b],[bold]cat")
    assert code == 0, err
    shown = " ".join(printed.split())
    assert all(name in shown for name in ("[/b]", "dog [b]", "[bold]cat")) and "x[red].jpg" in printed.replace("\n", "")


def test_a_byte_order_mark_is_no_part_of_the_first_name(cli: Cli, photos: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("red thing\nblue thing\n".encode("utf-8-sig"))
    code, printed, _ = cli("predict", trained, photos / "red_thing" / "0.jpg", "--classes", tmp_path / "names.txt", "--json")
    predictions = json.loads(printed)["predictions"]
    assert code == 0 and {p["name"]: p["trained"] for p in predictions} == {"red thing": True, "blue thing": True}


def test_the_note_on_tiny_is_one_line(cli: Cli, photos: Path, tmp_path: Path) -> None:
    train = ("train", "--data", photos, "--shots", 2, "--set", "epochs=2", "--set", "batch_size=2", "--quiet")
    code, _, err = cli(*train, "--out", tmp_path / "a")
    assert code == 0 and err.count("note: no backbone was named, so the embedded 'tiny' is used") == 1
    code, _, err = cli(*train, "--out", tmp_path / "b", "--backbone", "tiny")
    assert code == 0 and "no backbone was named" not in err
