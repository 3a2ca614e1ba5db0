"""Predictions in bulk: the same answers as one by one, in order, as they come; every format; what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmrl
from mmrl.bulk import output, predict, progress, stream
from mmrl.bulk.answers import Answer, fingerprint
from mmrl.bulk.forms import CsvAnswers, DamagedLineError, JsonAnswers
from mmrl.bulk.listed import ListedImage, WantedImages
from mmrl.bulk.predict import Engine, Target, answers, predict_many, write
from mmrl.classifier.predictor import Classifier
from mmrl.data import BrokenImageWarning
from mmrl.errors import MmrlError, UsageError
from mmrl.files import lock, unlock
from tests.unit import bulk_sets
from tests.unit.bulk_sets import CLASSES, judge

COUNT = 31


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bulk_sets.photos(tmp_path_factory.mktemp("bulk"))


@pytest.fixture(scope="module")
def clf() -> Classifier:
    return bulk_sets.classifier()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 8)


def written(photos: Path, out: Path, **options: Any) -> predict.Predicted:
    asked = {name: options.pop(name) for name in list(options) if name in ("top", "threshold", "classes", "seed")}
    target = Target.of(out, **options)
    assert target is not None
    return write(judge(**asked), WantedImages((photos,), recursive=True), target, Engine(), problem=lambda text: None, progress=False)


def flat(found: Iterator[list[Answer]]) -> list[Answer]:
    return [each for block in found for each in block]


def test_answers_are_those_of_one_image_at_a_time(photos: Path, clf: Classifier) -> None:
    found = flat(answers(judge(threshold=0.0), WantedImages((photos,), recursive=True)))
    assert [each.image for each in found] == sorted((each.image for each in found), key=lambda name: ("deep" in name, name))
    assert len(found) == COUNT and sum(bool(each.error) for each in found) == 3
    for each in found:
        if not each.error:
            (alone,) = clf.judge([each.image], CLASSES, top=3, threshold=0.0)
            assert [one.name for one in each.ranked] == [one.name for one in alone.ranked]
            assert [one.probability for one in each.ranked] == pytest.approx([one.probability for one in alone.ranked], abs=1e-5)
            assert each.score == pytest.approx(alone.score, rel=1e-5) and each.unknown == (each.score < 0.0)


def test_an_answer_is_the_same_bits_wherever_it_is_begun_and_whatever_else_is_broken(photos: Path, tmp_path: Path) -> None:
    own, names = judge(), list(WantedImages((photos,), recursive=True))
    whole = flat(answers(own, names))
    for start in (1, 7, 8, 20, 30):
        assert flat(answers(own, names[start:], start=start)) == whole[start:]
    gone = [ListedImage(str(tmp_path / "gone.png")) if at % 3 == 0 else each for at, each in enumerate(names)]
    found = flat(answers(own, gone, Engine(workers=0)))
    assert [each for at, each in enumerate(found) if at % 3] == [each for at, each in enumerate(whole) if at % 3]
    assert all("no such image" in each.error for each in found[::3])


def test_images_are_taken_as_the_work_goes_on(photos: Path) -> None:
    taken = []

    def endless() -> Iterator[ListedImage]:
        while True:
            for each in WantedImages((photos,), recursive=True):
                taken.append(each)
                yield each

    found = answers(judge(), endless(), Engine(workers=2))
    for _ in range(20):
        next(found)
    assert 160 <= len(taken) <= 160 + (stream.AHEAD + 1) * stream.BLOCK
    found.close()  # type: ignore[attr-defined]
    assert not [each for each in threading.enumerate() if each.name.startswith("mmrl-data")]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_format_says_the_same(photos: Path, tmp_path: Path, ending: str) -> None:
    expected = flat(answers(judge(threshold=0.0), WantedImages((photos,), recursive=True)))
    out = tmp_path / f"x.{ending}"
    found = written(photos, out, threshold=0.0)
    assert (found.images, found.unreadable, found.answered, found.before) == (COUNT, 3, 28, 0)
    if ending == "csv":
        rows = list(csv.DictReader(io.StringIO(out.read_bytes().decode(), newline="")))
        assert list(rows[0]) == ["image", "rank", "class", "probability", "trained", "error", "score", "unknown"]
        wanted = [[each.image, one.name] for each in expected for one in each.ranked]
        assert [[row["image"], row["class"]] for row in rows if not row["error"]] == wanted
        assert [row["error"] for row in rows if row["error"]] == [each.error for each in expected if each.error]
    else:
        if ending == "parquet":
            lines = pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
        else:
            lines = list(map(json.loads, out.read_text().splitlines()))
        assert [line["image"] for line in lines] == [each.image for each in expected]
        assert [line.get("error") or "" for line in lines] == [each.error for each in expected]
        assert [line["predictions"] or [] for line in lines] == [[one._asdict() for one in each.ranked] for each in expected]
        assert [line.get("score") for line in lines] == [each.score for each in expected]
    state = json.loads(output.state_of(out).read_text())
    assert state["finished"] and state["images"] == COUNT and state["asked"]["classes"] == list(CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, f"{out.name}.run.json"]


def test_a_file_of_the_size_of_the_memory_is_joined_by_row_groups(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("mmrl.bulk.parquet.GROUP", 10)
    written(photos, tmp_path / "x.parquet")
    with parquet.ParquetFile(tmp_path / "x.parquet") as file:
        assert file.num_row_groups == 4 and file.metadata.num_rows == COUNT


def test_one_file_is_written_by_one_process(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    held = lock(tmp_path / "x.jsonl.lock")
    (tmp_path / "alias.jsonl").symlink_to(out)
    for name in ("x.jsonl", "alias.jsonl"):
        for more in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match=f"another process writes to .*{name} at this moment"):
                written(photos, tmp_path / name, **more)
    unlock(tmp_path / "x.jsonl.lock", held)
    assert written(photos, out).images == COUNT and not (tmp_path / "x.jsonl.lock").exists()


def test_nothing_that_was_computed_is_replaced_unasked(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    out.write_bytes(b"")  # an empty file has nothing to lose
    assert written(photos, out).images == COUNT
    before = out.read_bytes()
    with pytest.raises(UsageError, match="x.csv is there already. Give another --out, or --overwrite"):
        written(photos, out)
    assert out.read_bytes() == before
    assert written(photos, out, overwrite=True, top=1).images == COUNT and out.read_bytes() != before
    with pytest.raises(UsageError, match="--resume and --overwrite are both given"):
        written(photos, out, overwrite=True, resume=True)
    (tmp_path / "y.jsonl").write_text("mine\n")
    with pytest.raises(UsageError, match="y.jsonl is there, and no y.jsonl.run.json beside it tells what was asked"):
        written(photos, tmp_path / "y.jsonl", resume=True)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="folder.csv is a folder; give the name of a file"):
        written(photos, tmp_path / "folder.csv")
    with pytest.raises(UsageError, match="too long for the name of a file"):
        written(photos, tmp_path / f"{'x' * 240}.csv")


def test_with_overwrite_the_old_stays_until_there_is_something_new(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    written(photos, out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match="none of the 2 images can be read; the first: .*gone"):
        predict_many(bulk_sets.classifier(), [tmp_path / "gone.png"] * 2, out, classes=CLASSES, overwrite=True, progress=False)
    assert out.read_bytes() == before


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_what_is_finished_stays_so(photos: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / f"x.{ending}"
    written(photos, out)
    before = out.read_bytes()
    again = written(photos, out, resume=True)
    assert again == predict.Predicted(out, COUNT, 3, COUNT) and out.read_bytes() == before
    fewer = WantedImages((photos / "a",))
    with pytest.raises(UsageError, match="has more answers than there are images now"):
        write(judge(), fewer, Target(out, resume=True), Engine(), problem=print, progress=False)
    more = WantedImages((photos, photos / "a"), recursive=True)
    if ending == "parquet":
        with pytest.raises(UsageError, match="is finished, of 31 images, and there are more now"):
            write(judge(), more, Target(out, resume=True), Engine(), problem=print, progress=False)
    else:
        append, during = output.AnswerFile.append, list[bool]()

        def noted(self: output.AnswerFile, *given: Any, **options: Any) -> None:
            append(self, *given, **options)
            during.append(json.loads(output.state_of(out).read_text())["finished"])

        with monkeypatch.context() as patch:
            patch.setattr(output.AnswerFile, "append", noted)
            longer = write(judge(), more, Target(out, resume=True), Engine(), problem=print, progress=False)
        assert during and not any(during) and json.loads(output.state_of(out).read_text())["finished"]
        assert longer.before == COUNT and longer.images == COUNT + 16 and out.read_bytes().startswith(before)
        whole = tmp_path / f"whole.{ending}"
        write(judge(), more, Target(whole), Engine(), problem=print, progress=False)
        assert whole.read_bytes() == out.read_bytes()


def cut(path: Path, at: float) -> bytes:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * at)])
    return content


def test_a_run_of_other_options_or_images_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    written(photos, out)
    cut(out, 0.5)
    half = out.read_bytes()
    for more, said in (
        ({"top": 2}, "top was 3 and is 2"), ({"classes": ("cat", "dog")}, r'classes was \["cat", .* and is \["cat", "dog"\]'),
        ({"threshold": 1.0}, "reject was null"), ({"seed": 1}, "backbone was"), ({"sort_into": tmp_path / "s"}, "sort_into was null"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"x.jsonl was begun with other options: .*{said}"):
            written(photos, out, resume=True, **more)
    with pytest.raises(UsageError, match="image 1 of .*x.jsonl is .*000.png, and now .*b/deep/000.png"):
        written(photos / "b", out, resume=True)
    (tmp_path / "x.jsonl.run.json").write_text('{"schema": "mmrl.predict/9"}')
    with pytest.raises(MmrlError, match="is damaged, or of another version"):
        written(photos, out, resume=True)
    assert out.read_bytes() == half


def test_a_line_that_is_damaged_in_the_midst_is_not_thrown_away(photos: Path, tmp_path: Path) -> None:
    for ending in ("jsonl", "csv"):
        out = tmp_path / f"x.{ending}"
        written(photos, out)
        lines = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join([*lines[:5], b"?" + lines[5][9:], *lines[6:]]))
        with pytest.raises(MmrlError, match=f"x.{ending}, line [67] is not as it was written"):
            written(photos, out, resume=True)
        assert len(out.read_bytes().splitlines()) == len(lines)


@pytest.mark.parametrize("form", [JsonAnswers(), CsvAnswers(2, ("score", "copy"))])
def test_lines_are_read_as_they_were_written(form: JsonAnswers | CsvAnswers, clf: Classifier, photos: Path) -> None:
    names = ["a.png", 'quo"te, comma;\ttab', "two\nlines", "\r", "\r\n", " ", "é 漢 \U0001f600", "\\udce9", "=1+1", "#"]
    names.append(os.fsdecode(b"caf\xe9"))
    ranked = clf.judge([photos / "a" / "000.png"], CLASSES, top=2, reject=False)[0].ranked
    good = [Answer(name, ranked, score=0.5, copy=f"to/{name}") for name in names]
    given = [Answer(each.image, [], "bad") if at % 3 == 2 else each for at, each in enumerate(good)]
    content = form.head + b"".join(map(form.lines, given))
    kept = list(form.kept(io.BytesIO(content)))
    assert [each.image for each in kept] == list(map(form.written, names))
    assert [each.error for each in kept] == [each.error for each in given] and kept[-1].end == len(content)
    assert [each.copy for each in kept] == [each.copy and form.written(each.copy) for each in given]
    ends = [0, *(each.end for each in kept)]
    for at in range(len(content)):  # cut anywhere: what is whole is kept, and nothing else
        found = list(form.kept(io.BytesIO(content[:at])))
        assert found == kept[: sum(end <= at for end in ends) - 1]
    wide = Answer("a.png", ranked, score=0.5, copy="x" * 200_000)  # beyond what Python's csv reads unasked
    assert [each.copy for each in form.kept(io.BytesIO(form.head + form.lines(wide)))] == [wide.copy]
    with pytest.raises(DamagedLineError):
        list(form.kept(io.BytesIO(form.head + b"x\n" + content)))


def test_the_fingerprint_is_of_all_that_decides(clf: Classifier) -> None:
    other = bulk_sets.classifier()
    assert fingerprint(clf) == fingerprint(other)
    other.trained = ("cat",)
    assert fingerprint(clf) != fingerprint(other)


def test_scores_that_are_not_finite_end_it_and_keep_what_is_there(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, out = judge(), tmp_path / "x.jsonl"
    score, blocks = own.classifier.method.logits_of_some, []

    def broken(pixels: Any, parts: Any) -> Any:
        blocks.append(len(pixels))
        return [each * (math.nan if len(blocks) == 3 else 1) for each in score(pixels, parts)]

    monkeypatch.setattr(own.classifier.method, "logits_of_some", broken)
    with pytest.raises(MmrlError, match="the scores are not finite"):
        write(own, WantedImages((photos,), recursive=True), Target(out), Engine(), problem=print, progress=False)
    assert len(out.read_bytes().splitlines()) == 16 and blocks == [8, 8, 8]


def test_the_first_bad_images_are_named_and_the_others_counted() -> None:
    said = list[str]()
    bad = predict._Bad(said.append)
    for at in range(predict.NAMED + 3):
        bad.tell(f"{at}.png could not be copied.")
    bad.rest(Path("x.csv"))
    assert len(said) == predict.NAMED + 1 and said[-1] == "3 more; those that cannot be read have an error in x.csv."


def test_python(photos: Path, tmp_path: Path, clf: Classifier) -> None:
    names = (str(each) for each in sorted((photos / "a").glob("00*.png")))
    with pytest.warns(BrokenImageWarning, match="2 of 10 images could not be read and 0 not copied; the first: .*002.png"):
        found = mmrl.predict_many(clf, names, tmp_path / "x.jsonl", classes="cat,dog", top=1)
    assert found.images == 10 and found.unreadable == 2 and found.out == tmp_path / "x.jsonl"
    assert json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])["image"] == str(photos / "a" / "000.png")
    with pytest.raises(UsageError, match="none of the files given is an image"):
        mmrl.predict_many(clf, [], tmp_path / "y.jsonl", classes="cat,dog")
    with pytest.raises(UsageError, match="images has an object of type int"):
        mmrl.predict_many(clf, [3], tmp_path / "y.jsonl", classes="cat,dog")  # type: ignore[list-item]
    with pytest.raises(UsageError, match="unknown engine 'spark'"):
        mmrl.predict_many(clf, photos, tmp_path / "y.jsonl", engine="spark")
    with pytest.raises(UsageError, match="--address and --gpu-fraction need --engine ray"):
        mmrl.predict_many(clf, photos, tmp_path / "y.jsonl", address="auto")
    with pytest.raises(UsageError, match="top is 0"):
        mmrl.predict_many(clf, photos, tmp_path / "y.jsonl", classes="cat,dog", top=0)
    assert not list(tmp_path.glob("y*"))


def test_without_pyarrow(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"--out .*x.parquet needs pyarrow: pip install 'mmrl\[results\]'"):
        written(photos, tmp_path / "x.parquet")


# ---- how far it is ----


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_line_a_minute_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with progress.shown(1_000_000, 500, show=True) as bar:
        for _ in range(4):
            clock.now += 31
            bar.update(310)
    assert capsys.readouterr().err == "1,120 of 1,000,000 images, 10.0/s, 27:44:48 left\n1,740 of 1,000,000 images, 10.0/s, 27:43:46 left\n"
    assert progress.line(20, 20, None, 4.0) == "20 images, 5.0/s"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with progress.shown(2000, 500, show=True) as bar:
        bar.update(64)
        bar.say("error: 3.png")
    said = terminal.getvalue()
    assert "564/2,000 images" in said and "left" in said and "error: 3.png\n" in said
