"""The images of a prediction in bulk: walked and read one after the other; what is no list is refused, what is hostile is a name."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.bulk import listed
from mmrl.bulk.listed import ListedImage, WantedImages
from mmrl.bulk.stream import load
from mmrl.data import formats
from mmrl.data.preprocess import Preprocess
from mmrl.errors import Notice, UsageError
from tests.unit.bulk_sets import photo

AS_THEY_ARE = ["photos/a.jpg", " leading.jpg", "tab\t.jpg", "*.jpg", "[1].png", "https://x.example/a.jpg", "é.jpg", "a.jpg", "a.jpg"]


def names(wanted: WantedImages) -> list[str]:
    return [each.name for each in wanted]


def test_folders_are_walked_in_order(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.png", "a.jpg", "b/c/3.webp", "B/x.jpg", ".hidden/x.jpg", "__MACOSX/x.jpg", "b/._1.png", "b/note.txt"):
        path = tmp_path / "top" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "top" / "linked.jpg").symlink_to(tmp_path / "top" / "a.jpg")
    top = tmp_path / "top"
    expected = ["a.jpg", "linked.jpg", "B/x.jpg", "b/1.png", "b/2.jpg", "b/c/3.webp"]
    wanted = WantedImages((top,), recursive=True)
    assert names(wanted) == [f"{top}/{name}" for name in expected] and wanted.count() == 6
    assert names(WantedImages((str(top),))) == [f"{top}/a.jpg", f"{top}/linked.jpg"]
    assert names(WantedImages((f"{top}/**/*.png",))) == [f"{top}/b/1.png"]
    (top / "loop").symlink_to(top)
    assert names(wanted) == [f"{top}/{name}" for name in expected]
    (tmp_path / "none" / "deep").mkdir(parents=True)
    for recursive, said in ((False, "has no images directly in it"), (True, "has no images in it or in its subfolders")):
        (only,) = WantedImages((tmp_path / "none",), recursive=recursive)
        assert said in only.problem and only.name == str(tmp_path / "none")


def test_a_walk_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        photo(tmp_path / f"{i}" / "x.png", i)
    asked, scandir = [], os.scandir
    monkeypatch.setattr(listed.os, "scandir", lambda folder: (asked.append(folder), scandir(folder))[1])
    found = iter(WantedImages((tmp_path,), recursive=True))
    next(found), next(found)
    assert asked == [str(tmp_path), f"{tmp_path}/0", f"{tmp_path}/1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_folder_that_cannot_be_looked_into_costs_no_other(tmp_path: Path) -> None:
    photo(tmp_path / "b" / "x.png", 1)
    (tmp_path / "a").mkdir(mode=0)
    found = list(WantedImages((tmp_path,), recursive=True))
    assert [Path(each.name).name for each in found] == ["a", "x.png"] and "cannot look into" in found[0].problem


def test_an_error_of_a_folder_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "b" / "x.png", 1), photo(tmp_path / "a" / "x.png", 1)
    scandir = os.scandir

    def refuses(folder: str) -> object:
        if folder.endswith("/a"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(listed.os, "scandir", refuses)
    found = list(WantedImages((tmp_path,), recursive=True))
    assert [each.problem for each in found] == [f"cannot look into the folder {tmp_path}/a: Permission denied. Check its permissions.", ""]


def test_heic_photos_are_counted_once_for_all_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "reads_heic", lambda: False)
    for name in ("a/1.HEIC", "b/2.heic", "b/3.png"):
        photo(tmp_path / name.replace("HEIC", "png").replace("heic", "png"), 1).rename(tmp_path / name)
    with pytest.warns(Notice, match=f"skipped 2 .HEIC files in {tmp_path}"):
        assert names(WantedImages((tmp_path,), recursive=True)) == [f"{tmp_path}/b/3.png"]


def lists(folder: Path) -> dict[str, Path]:
    """The same names as every kind of list."""
    found = {ending: folder / f"list.{ending}" for ending in ("txt", "csv", "jsonl", "parquet", "tsv.csv")}
    found["txt"].write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*AS_THEY_ARE[:3], "", "  ", *AS_THEY_ARE[3:]]).encode())
    cell = [f'"{name}"' for name in AS_THEY_ARE]
    found["csv"].write_text("\n".join(["id,image,more", *(f"{at},{each},x" for at, each in enumerate(cell)), "9,,x"]) + "\n")
    found["tsv.csv"].write_text("\n".join(["image\tmore", *(f"{each}\tx" for each in cell)]))
    texts = [json.dumps({"image": name, "more": 1} if at % 2 else name) for at, name in enumerate(AS_THEY_ARE)]
    found["jsonl"].write_text("\n".join([*texts, ""]))
    return found


@pytest.mark.parametrize("ending", ["txt", "csv", "tsv.csv", "jsonl", "parquet"])
def test_lists_are_taken_as_they_are(tmp_path: Path, ending: str) -> None:
    path = lists(tmp_path)[ending]
    if ending == "parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.table({"n": range(10), "image": [*AS_THEY_ARE, None]}), path)
    wanted = WantedImages((), (str(path),))
    assert names(wanted) == AS_THEY_ARE and wanted.count() == len(AS_THEY_ARE)
    assert not any(each.named or each.problem for each in wanted)


def test_stdin_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a.jpg\ncaf\xe9.jpg\n\nlast one")))
    wanted = WantedImages((), ("-",))
    assert wanted.count() is None
    assert names(wanted) == ["a.jpg", "caf\udce9.jpg", "last one"]
    assert WantedImages(iter(["a.jpg"])).count() is None


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="pipes have no names here")
def test_a_pipe_is_not_read_to_count_it() -> None:
    end, start = os.pipe()
    os.write(start, b"a.jpg\n")
    os.close(start)
    wanted = WantedImages((), (f"/dev/fd/{end}",))
    assert wanted.count() is None and names(wanted) == ["a.jpg"]
    os.close(end)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", b"a.jpg\n" + b"y" * 70_000, "line 2 has more than 65,536 bytes"),
        ("x.txt", b"a.jpg\n\x89PNG\0", "line 2 has a zero byte"),
        ("x.csv", b"path,label\na,b\n", "has no column 'image'; its first line is 'path,label'"),
        ("x.csv", b"", "has no column 'image'"),
        ("x.csv", b'image\n"open', "is not valid CSV"),
        ("x.csv", b"image\n\0", "has a zero byte"),
        ("x.jsonl", b'"a.jpg"\n{"image": "b.jpg"', "line 2 is not valid JSON, or was cut short"),
        ("x.jsonl", b'{"path": "b.jpg"}', "line 1 has no text 'image'"),
        ("x.jsonl", b"[" * 60_000, "line 1 is not valid JSON"),
        ("x.jsonl", b"3", "line 1 has no text 'image'"),
        ("x.parquet", b"PAR1 no", "cannot read the list"),
    ],
)
def test_what_is_no_list_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said) as told:
        names(WantedImages((), (str(tmp_path / name),)))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_lists_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg")
    for wrong, said in (("lost.txt", "list.txt"), ("list.csv", ""), ("list.parquet", ""), (".", "Is a directory")):
        with pytest.raises(UsageError, match=f"list.*{said}"):
            names(WantedImages((), (str(tmp_path / wrong),)))


def test_columns_of_parquet(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for table, said in (({"path": ["a"]}, "has no column 'image'; it has path"), ({"image": [1]}, "is of type int64; it must be text")):
        parquet.write_table(pa.table(table), tmp_path / "x.parquet")
        with pytest.raises(UsageError, match=said):
            names(WantedImages((), (str(tmp_path / "x.parquet"),)))


def test_what_is_not_there_is_known_before_a_model_is_loaded(tmp_path: Path) -> None:
    photo(tmp_path / "badger.png", 1)
    with pytest.raises(UsageError, match=f"no such image: {tmp_path}/bager.png. Did you mean {tmp_path}/badger.png?"):
        WantedImages((tmp_path / "bager.png",)).require_some()
    WantedImages((tmp_path / "bager.png", tmp_path)).require_some()
    WantedImages((), ("no such list",)).require_some()


# ---- names that nobody would choose ----

PREPROCESS = Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = st.text(st.characters(codec=None), max_size=40) | st.text(max_size=3).map(lambda text: text * 200)


@settings(max_examples=60, deadline=None)
@given(NAMES)
def test_any_name_is_a_line_or_an_image(name: str) -> None:
    found = load(ListedImage(name, named=True), PREPROCESS, False)
    assert found.name == name and found.planes is None and found.problem.strip()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for ending in ("txt", "csv", "jsonl"):
        path = folder / f"any.{ending}"
        path.write_bytes(content)
        try:
            found = names(WantedImages((), (str(path),)))
        except UsageError:
            continue
        assert all(name.strip() for name in found)
        if ending == "txt":
            lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
            assert [os.fsencode(name) for name in found] == [line.rstrip(b"\r") for line in lines if os.fsdecode(line).strip()]


def test_hostile_names_are_read(tmp_path: Path) -> None:
    for at, name in enumerate(("two\nlines.png", " .png", "-rf.png", "a;b,c\".png", "x" * 251 + ".png", os.fsdecode(b"caf\xe9.png"))):
        try:
            path = photo(tmp_path / "p" / f"{at}.png", at).rename(tmp_path / "p" / name)
        except OSError:
            continue
        assert load(ListedImage(str(path)), PREPROCESS, False).planes is not None, name
    found = list(WantedImages((tmp_path / "p",)))
    assert len(found) >= 5 and not any(each.problem for each in found)
    looped = list(itertools.islice(WantedImages(iter([str(tmp_path / "p" / "-rf.png")] * 3)), 5))
    assert len(looped) == 3
