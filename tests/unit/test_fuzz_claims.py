"""Small files that claim to be huge, or that ask for something to be run: neither memory nor time is given, and nothing is run."""

from __future__ import annotations

import json
import os
import random
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from mmrl import engine, methods
from mmrl.clip import load_clip
from mmrl.clip.load import read_openai_weights
from mmrl.data import load_dataset, read_coop_draw, to_rgb
from mmrl.engine.checkpoint import RunFolder, _seal
from mmrl.engine.memory import forget_peak, peak_resident, resident
from mmrl.engine.untrusted import TensorFile
from mmrl.errors import MmrlError, UsageError
from mmrl.files import write_json
from mmrl.names import check_names, distinct_names
from mmrl.reports.records import read_record
from mmrl.reports.report import build_report
from mmrl.reports.status import status
from mmrl.templates import fill
from tests import results_folder
from tests.unit.colours import NAMES, colours, fresh, read, smallest_clip
from tests.unit.fuzz_runs import record_content
from tests.unit.fuzzing import attempt

FEW = 96 * 2**20  # bytes: none of these files needs as much
DEEP = 200_000
PICKLES = {
    "a key nested 200,000 deep": b"\x80\x02}" + b")" + b"\x85" * DEEP + b"K\x01s.",  # hashing it overflows the stack of the processor
    "a value nested 200,000 deep": b"\x80\x02]" + b")" + b"\x85" * DEEP + b"a.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "2^60 lists": b"\x80\x02]q\x00" + b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60)) + b".",
    "a place in the memo of 2^31": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "marks": b"\x80\x02" + b"(1" * 100_000 + b"N.",
    "marks in marks": b"\x80\x02" + b"(" * 100_000 + b"1" * 100_000 + b"N.",
    "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "bytes of 1 TB": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "a frame of 1 TB": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
    "a million digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
}


def bounded(read: Callable[[], object]) -> MmrlError | None:
    """The error of a reader that refuses; fails where it takes more than a little memory, or long."""
    forget_peak()
    before = resident()
    error = attempt(read)
    assert peak_resident() - before < FEW
    return error


def archive(path: Path, pickled: bytes, parts: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> Path:
    """As torch.save writes them."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.pkl", pickled)
        out.writestr("archive/byteorder", "little")
        out.writestr("archive/version", "3\n")
        for name, content in (parts or {}).items():
            out.writestr(f"archive/{name}", content, method)
    return path


def text(written: str) -> bytes:
    return b"X" + struct.pack("<I", len(written)) + written.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensors(size: int, stored: int, *, count: int = 1, dimensions: int = 1) -> bytes:
    """A pickle that names `count` tensors, each of as many `dimensions` of `size` floats, in one storage said to have `stored`."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(stored) + b"tQ"
    layout = b"(" + number(size) * dimensions + b"t(" + number(1) * dimensions + b"t"
    one = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + layout + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}(" + b"".join(text(f"x{n}") + one for n in range(count)) + b"u."


def read_state(path: Path) -> object:
    """The archive as a training state that someone sealed."""
    content, place = path.read_bytes(), path.with_suffix(".run")
    place.mkdir(exist_ok=True)
    (place / "training_state.bin").write_bytes(_seal(content) + content)
    with RunFolder(place, {"a": 1}, resume=True) as held:
        return held.load()


def all_of(path: Path) -> list[torch.Tensor]:
    found = TensorFile(path)
    return [found[name] for name in found]


ARCHIVES: dict[str, Callable[[Path], object]] = {"checkpoint": all_of, "state": read_state, "weights": read_openai_weights}


@pytest.mark.parametrize("reader", ARCHIVES)
@pytest.mark.parametrize("claim", PICKLES)
def test_pickles_in_archives(claim: str, reader: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", PICKLES[claim])
    assert bounded(lambda: ARCHIVES[reader](path))


@pytest.mark.parametrize("claim", PICKLES)
def test_pickles_of_draws(claim: str, tmp_path: Path) -> None:
    path = tmp_path / "shot_4-seed_1.pkl"
    path.write_bytes(PICKLES[claim])
    assert isinstance(bounded(lambda: read_coop_draw(path, colours())), UsageError)


@pytest.mark.parametrize("reader", ARCHIVES)
def test_archives_that_claim_or_inflate(reader: str, tmp_path: Path) -> None:
    path, read = tmp_path / "x.pt", ARCHIVES[reader]

    def refused(pickled: bytes, storage: bytes, method: int = zipfile.ZIP_STORED) -> None:
        archive(path, pickled, {"data/0": storage}, method)
        assert bounded(lambda: read(path))

    refused(tensors(2**25, 2**25), bytes(2**27), zipfile.ZIP_DEFLATED)  # 130 kB that inflate to 128 MB
    refused(tensors(2**28, 2**28), bytes(40))  # says that it is of 1 GB
    refused(tensors(10, 2**28), bytes(40))  # says so of its storage alone
    refused(tensors(2**18, 2**18, count=1000), bytes(2**20))  # 1 GB of a storage of 1 MB
    refused(tensors(2**31 - 1, 10, dimensions=300_000), bytes(40))  # to multiply these takes minutes
    whole = archive(path, tensors(10, 10), {"data/0": bytes(40)}).read_bytes()
    sizes = struct.pack("<II", 40, 40)
    assert whole.count(sizes) == 2
    path.write_bytes(whole.replace(sizes, struct.pack("<II", 2**29, 2**29)))
    assert bounded(lambda: read(path))


def test_the_archive_of_these_tests_is_one_that_torch_reads(tmp_path: Path) -> None:
    found = torch.load(archive(tmp_path / "x.pt", tensors(10, 10, count=2), {"data/0": bytes(40)}), weights_only=True)
    assert [value.shape for value in found.values()] == [(10,)] * 2 and len(all_of(tmp_path / "x.pt")) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_module_of_torchscript_is_not_run(tmp_path: Path) -> None:
    """TorchScript runs `__setstate__` when it loads a module, and may write files there."""

    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.training = torch.zeros(3), True

        @torch.jit.export
        def __getstate__(self) -> tuple[torch.Tensor, bool]:
            return self.w, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
            self.w, self.training = state[0], state[1]
            torch.save(self.w, "executed")

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()
            self.register_buffer("visual_proj", torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        torch.jit.script(Outer()).save("evil.pt")
        torch.jit.load("evil.pt")
        assert Path("executed").exists(), "else the test shows nothing"
        Path("executed").unlink()
        with pytest.raises(UsageError, match="is no CLIP in OpenAI's layout: it has no 'visual.proj'"):
            load_clip(str(tmp_path / "evil.pt"), device="cpu")
        assert not Path("executed").exists()
    finally:
        os.chdir(before)


def test_adapters_that_claim(tmp_path: Path) -> None:
    clip = smallest_clip()
    claims = {"mmrl": {"rep_dim": 100_000, "rep_tokens": 1000}, "mmrlpp": {"layer_rank": 100_000, "projection_rank": 100_000}}
    for name, claim in claims.items():
        engine.save_adapter(tmp_path, fresh(clip, name), classes=NAMES, template="a {}.")
        path = tmp_path / "adapter_config.json"
        written = json.loads(path.read_text())
        path.write_text(json.dumps({**written, "options": {**written["options"], **claim}}))
        assert "do not fit" in str(bounded(lambda: engine.load_adapter(tmp_path, clip)))
        path.write_text(json.dumps({**written, "template": [f"{n} {{}}" for n in range(100_000)]}))
        assert "at most 1,000 can be averaged" in str(bounded(lambda: engine.load_adapter(tmp_path, clip)))
    method = methods.build("tip-adapter", clip, task=methods.Task(NAMES, "a {}.", images=8))
    engine.save_adapter(tmp_path, method, classes=NAMES, template="a {}.")
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": 10**9}))
    assert "do not fit" in str(bounded(lambda: engine.load_adapter(tmp_path, clip)))
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**60) + save({"visual.proj": torch.zeros(2)})[8:])
    assert bounded(lambda: read_openai_weights(tmp_path / "x.safetensors"))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in (header, *chunks)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_pictures_that_claim() -> None:
    bomb = zlib.compress(bytes(2**27), 1)
    frame = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    bitmap = struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)
    for content in (
        png(50_000, 50_000, (b"IDAT", b"")), png(9000, 9000, (b"IDAT", b"")), png(9, 9, (b"zTXt", b"a\0\0" + bomb)),
        png(9, 9, (b"iCCP", b"a\0\0" + bomb)), png(9, 9, (b"iTXt", b"a\0\1\0\0\0" + bomb)), b"P6 100000 100000 255\n",
        b"P3 9000 9000 255\n" + b"1 " * 1000, b"GIF89a" + frame + b"\x08\x00;", b"BM" + bitmap,
    ):  # fmt: skip
        assert isinstance(bounded(lambda content=content: to_rgb(content)), UsageError)  # type: ignore[misc]


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch executed) (w) file\n%%EOF\n")
    assert "is PostScript, which is a program and is not run" in str(bounded(lambda: to_rgb(path)))


def test_records_that_claim(tmp_path: Path) -> None:
    def refused(change: Callable[[dict[str, Any]], object]) -> MmrlError | None:
        content = record_content()
        change(content["tests"][0]["scores"])
        (tmp_path / "run.json").write_text(json.dumps(content))
        return bounded(lambda: read_record(tmp_path))

    empty = {"size": 10_000, "counts": []}
    assert not refused(lambda scores: scores.update(confusion=empty, class_names=[], per_class=[]))  # is one, and takes no room
    assert refused(lambda scores: scores.update(class_names=[1] * 200_000))
    assert refused(lambda scores: scores.update(per_class=["x"] * 200_000))
    assert refused(lambda scores: scores["bins"][0].update(count=10**400))
    (tmp_path / "run.json").write_bytes(b"")
    os.truncate(tmp_path / "run.json", 2**40)
    assert "at most 33,554,432 are read" in str(bounded(lambda: read_record(tmp_path)))


def test_names_and_prompts_that_claim() -> None:
    letters = random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=100_000)
    clip = smallest_clip()
    assert isinstance(bounded(lambda: clip.tokenize(fill("a {}.", ["".join(letters)]))), UsageError)
    assert bounded(lambda: fill("a {}." + " " * 1_000_000, ["a"] * 10_000))
    assert not bounded(lambda: check_names(distinct_names(["crane"] * 50_000)))
    for name in ("a" + " (" * 200_000, "a" + " " * 500_000 + "x", "a (2)" * 100_000, "(" + "1" * 500_000, (" " * 500 + "x") * 500):
        bounded(lambda name=name: fill("{}", [name]))  # type: ignore[misc]


def test_names_that_no_file_can_hold(tmp_path: Path) -> None:
    """Of files in another encoding than UTF-8, which a training may meet at its very end."""
    with pytest.raises(UsageError, match=r"caf.udce9.pt.* is not UTF-8"):
        write_json(tmp_path / "x.json", "caf\udce9.pt")
    clip = smallest_clip()
    clip.name = "caf\udce9.pt"
    with pytest.raises(UsageError, match="is not UTF-8"):
        engine.save_adapter(tmp_path / "adapter", fresh(clip), classes=NAMES, template="a {}.")
    assert not list(tmp_path.rglob("*.*"))


def test_lists_that_claim(tmp_path: Path) -> None:
    deep = b'{"train":[[' + b"[" * 900 + b"]" * 900 + b']],"test":[]}'
    for ending, content in (
        (".json", b"[" * 10_000_000), (".json", b'{"train":' * 100_000), (".json", deep),
        (".jsonl", b"[" * 5_000_000), (".csv", b"path,label\n" + b'"' * 1_000_000), (".csv", b"path,label," + b"x," * 300_000 + b"\na,b\n"),
    ):  # fmt: skip
        (tmp_path / f"x{ending}").write_bytes(content)
        error = bounded(lambda ending=ending: load_dataset(tmp_path / f"x{ending}"))  # type: ignore[misc]
        assert isinstance(error, UsageError) or content.startswith(b"path,label,x")


@pytest.mark.parametrize("lost", ["splits", "names", "a column", "a picture"])
def test_saved_folders_that_lost_something(lost: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    table = datasets.Dataset.from_dict({"image": [read("red/1"), read("blue/2")], "label": [0, 1]}, features=features)
    other = table.remove_columns("label") if lost == "a column" else table
    datasets.DatasetDict({"train": table, "test": other}).save_to_disk(str(tmp_path / "saved"))
    if lost == "splits":
        (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": []}')
    elif lost == "names":
        for path in tmp_path.glob("saved/*/dataset_info.json"):
            path.write_text(path.read_text().replace('"red"', "1"))
    elif lost == "a picture":
        for path in tmp_path.glob("saved/test/*.arrow"):
            path.write_bytes(path.read_bytes().replace(b"IHDR", b"XXXX"))

    def use() -> object:
        dataset = load_dataset(tmp_path / "saved")
        return [dataset.image(item) for item in dataset.test]

    assert isinstance(attempt(use), UsageError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for reader in (TensorFile, to_rgb, read_record, lambda path: load_dataset(path.rename(path.with_suffix(".csv")))):
        assert bounded(lambda reader=reader: reader(pipe))  # type: ignore[misc]
    place = results_folder.make_results(tmp_path / "results", slots := results_folder.halves(datasets=("one",), seeds=(1,)))
    results_folder.fill(place, slots)
    (place / "locks").mkdir()
    os.mkfifo(place / "locks" / f"{slots[0].run}.lock")
    os.mkfifo(place / "cost.json")
    assert bounded(lambda: status(place)) is None and bounded(lambda: build_report(place, tmp_path / "report")) is None


def test_the_alarm_rings() -> None:
    """Else the tests above would wait, and not fail."""
    from tests.unit.fuzzing import Hang, patience

    with pytest.raises(Hang), patience(0.05):
        time.sleep(20)
