"""`mmrl predict`: no bad file takes anything from the others; tables, JSON and CSV, printed or written."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmrl.data import formats
from mmrl.errors import UsageError
from tests.unit.conftest import Cli


@pytest.fixture
def mixed(photos: Path, tmp_path: Path) -> Path:
    """Two photos, a text called like one, an empty file, and what systems leave."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a.jpg", "z.jpg"):
        shutil.copy(photos / "red_thing" / "0.jpg", folder / name)
    (folder / "b.jpg").write_text("no photo")
    (folder / "c.jpg").write_bytes(b"")
    for litter in ("._a.jpg", ".DS_Store", "Thumbs.db", "notes.txt"):
        (folder / litter).write_bytes(b"\0")
    return folder


def test_a_bad_file_discards_nothing(cli: Cli, trained: Path, mixed: Path) -> None:
    code, printed, err = cli("predict", trained, mixed, mixed.parent / "mixd" / "a.jpg", "--json")
    lines = list(map(json.loads, printed.splitlines()))
    assert code == 1 and [Path(line["image"]).name for line in lines] == ["a.jpg", "b.jpg", "c.jpg", "z.jpg", "a.jpg"]
    assert [(len(line["predictions"]), "error" in line) for line in lines] == [(2, False), (0, True), (0, True), (2, False), (0, True)]
    said = err.splitlines()
    assert len(said) == 3 and all(line.startswith("error: ") for line in said)
    assert "b.jpg is not an image" in said[0] and "c.jpg" in said[1]
    assert f"no such image: {mixed.parent}/mixd/a.jpg. Did you mean {mixed}/a.jpg?" in said[2]
    code, again, err = cli("predict", trained, mixed, mixed.parent / "mixd" / "a.jpg", "--json", "--skip-broken")
    assert code == 0 and again == printed and err.count("warning: ") == 3
    code, printed, _ = cli("predict", trained, mixed)
    assert code == 1 and "a.jpg" in printed and "z.jpg" in printed and "b.jpg" not in printed


def test_patterns_and_folders_skip_what_systems_leave(cli: Cli, trained: Path, mixed: Path) -> None:
    for given in ([mixed / "*"], [mixed / "._a.jpg", mixed / "Thumbs.db", mixed / "?.jpg"]):
        code, printed, err = cli("predict", trained, *given, "--json")
        names = [Path(json.loads(line)["image"]).name for line in printed.splitlines() if json.loads(line)["predictions"]]
        assert code == 1 and names == ["a.jpg", "z.jpg"] and "._a" not in err and "Thumbs" not in err
    code, _, err = cli("predict", trained, mixed / "Thumbs.db")
    assert code == 2 and "none of the files given is an image" in err


def test_csv(cli: Cli, trained: Path, mixed: Path, tmp_path: Path) -> None:
    code, printed, _ = cli("predict", trained, mixed, "--csv", "--classes", "red thing,\"a, b\"")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert code == 1 and list(rows[0]) == ["image", "rank", "class", "probability", "trained", "error"]
    of_a = [row for row in rows if row["image"].endswith("a.jpg")]
    assert [row["rank"] for row in of_a] == ["1", "2", "3"] and abs(sum(float(row["probability"]) for row in of_a) - 1) < 1e-5
    assert [bool(row["error"]) for row in rows if not row["rank"]] == [True, True]
    for name in ("found.csv", "found.jsonl"):
        code, said, _ = cli("predict", trained, mixed, "--out", tmp_path / name, "--skip-broken", "--top", 1)
        assert code == 0 and said == f"written to {tmp_path / name} (2 images)\n"
    lines = list(map(json.loads, (tmp_path / "found.jsonl").read_text().splitlines()))
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [row["class"] for row in rows] == [line["predictions"][0]["name"] if line["predictions"] else "" for line in lines]


def test_a_name_that_is_not_utf8_is_written_escaped(cli: Cli, trained: Path, mixed: Path, tmp_path: Path) -> None:
    name = mixed / os.fsdecode(b"caf\xe9.jpg")
    try:
        shutil.copy(mixed / "a.jpg", name)
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    for ending in ("csv", "jsonl"):
        code, _, err = cli("predict", trained, name, "--out", tmp_path / f"found.{ending}")
        assert code == 0 and "caf\\udce9.jpg" in (tmp_path / f"found.{ending}").read_text("utf-8"), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json", "--csv"), "--json and --csv are both given"),
        (("--json", "--out", "found.jsonl"), "leave --json out"),
        (("--csv", "--sort-into", "sorted"), "leave --csv out"),
        (("--engine", "ray", "--device", "cuda"), "--engine ray takes no --device"),
        (("--out", "found.xlsx"), "give a file that ends in .csv, .jsonl or .parquet"),
    ],
)
def test_what_cannot_be_written_is_refused_first(cli: Cli, trained: Path, photos: Path, words: tuple[str, ...], message: str) -> None:
    code, printed, err = cli("predict", trained, photos / "red_thing", *words)
    assert code == 2 and message in err and not printed


def test_heic_photos_of_a_folder_are_counted(cli: Cli, trained: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "reads_heic", lambda: False)
    for i in range(2):
        (mixed / f"{i}.HEIC").write_bytes(b"\0")
    code, printed, err = cli("predict", trained, mixed, "--json", "--skip-broken")
    assert code == 0 and "HEIC" not in printed and f"note: skipped 2 .HEIC files in {mixed}: pip install 'mmrl[heic]'" in err


def test_urls_are_fetched_if_asked(cli: Cli, trained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, asked = photos / "red_thing" / "0.jpg", []

    def fetched(url: str, limits: object) -> bytes:
        asked.append(url)
        if url.endswith("gone.jpg"):
            raise UsageError(f"{url} cannot be fetched: 404.")
        return photo.read_bytes() if url.endswith("red.jpg") else b"<html>"

    monkeypatch.setattr("mmrl.classifier.web.fetched", fetched)
    urls = [f"https://photos.example/{name}" for name in ("red.jpg", "gone.jpg", "page.html")]
    code, printed, err = cli("predict", trained, photo, *urls, "--json", "--allow-urls")
    lines = list(map(json.loads, printed.splitlines()))
    assert code == 1 and [line["image"] for line in lines] == [str(photo), *urls] and sorted(asked) == sorted(urls)
    names = [[each["name"] for each in line["predictions"]] for line in lines]
    assert names[0] == names[1] and len(names[0]) == 2
    assert "404" in lines[2]["error"] and f"{urls[2]}: image of 6 bytes" in lines[3]["error"]
    asked.clear()
    code, printed, err = cli("predict", trained, photo, urls[0], "--json")
    assert code == 1 and not asked and f"error: '{urls[0]}' is a URL, and fetching is off: give --allow-urls" in err


# ---- many images: what they are answered with, tests/unit/test_bulk*.py ----


def test_lists_folders_in_folders_and_stdin(cli: Cli, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{photos}/red_thing/{at}.jpg" for at in (3, 1)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(f"{names[0]}\n\n".encode())))
    code, printed, _ = cli("predict", trained, photos, "--recursive", "--from-list", tmp_path / "list.txt", "--from-list", "-", "--json")
    found = [json.loads(line)["image"] for line in printed.splitlines()]
    inside = [f"{photos}/{folder}/{at}.jpg" for folder in ("blue thing", "red_thing") for at in range(8)]
    assert code == 0 and found == [*inside, *names, names[0]]
    for words, said in (((), "no images are given"), (("--from-list", tmp_path / "none.txt"), "the list")):
        code, _, err = cli("predict", trained, *words)
        assert code == 2 and said in err and "\n" not in err.strip()


def test_sorted_resumed_and_refused(cli: Cli, trained: Path, mixed: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "found.csv", tmp_path / "sorted"
    words = ("predict", trained, mixed, "--out", out, "--sort-into", folder, "--top", 1)
    code, said, err = cli(*words)
    assert code == 1 and said == f"written to {out} (2 images)\n" and err.count("error: ") == 2
    rows = list(csv.DictReader(out.open()))
    assert [bool(row["copy"]) for row in rows] == [True, False, False, True]
    assert all(Path(row["copy"]).parent.parent == folder and Path(row["copy"]).is_file() for row in rows if row["copy"])
    code, _, err = cli(*words)
    assert code == 2 and f"{out} is there already" in err
    content = out.read_bytes()
    out.write_bytes(content[:-20])  # as a kill leaves it: a line is whole before its copy is made
    Path(rows[-1]["copy"]).unlink()
    code, said, _ = cli(*words, "--resume")
    assert code == 1 and said == f"written to {out} (2 images, 3 of them before)\n" and out.read_bytes() == content
    assert cli(*words, "--resume", "--skip-broken")[0] == 0
    code, _, err = cli(*words[:-1], 2, "--resume")
    assert code == 2 and "top was 1 and is 2" in err
    assert cli(*words[:-1], 2, "--overwrite", "--skip-broken")[0] == 0
    code, _, err = cli("predict", trained, mixed, "--resume")
    assert code == 2 and "--resume needs --out or --sort-into" in err


def test_an_interrupted_run_tells_of_resume(cli: Cli, trained: Path, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmrl.bulk.output.AnswerFile.append", interrupted)
    code, _, err = cli("predict", trained, mixed, "--out", tmp_path / "x.jsonl")
    assert code == 130 and f"kept in {tmp_path}/x.jsonl; the same command with --resume goes on" in err


def test_of_very_many_images_there_are_several_tables(
    cli: Cli, trained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrl.cli.predictions.ROWS", 10)
    monkeypatch.setattr("mmrl.bulk.stream.BLOCK", 5)
    code, printed, err = cli("predict", trained, photos, "--recursive", "--top", 1)
    assert code == 0 and printed.count("probability") == 2 and printed.count(".jpg") == 16 and not err
