"""The benchmarks run, their tables parse, and both sides compute the same. No time is asserted: that is for a quiet machine."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    bulk,
    common,
    feature_cache,
    gpu,
    grid,
    inference,
    kernels,
    memory,
    rows,
    test_pipeline,
    text_memory,
    train_step,
    views,
)
from benchmarks.methods import COLUMNS, ROOT, golden_rows, here, linked, method_rows, mini_table, put, step_table
from benchmarks.sides import PLAIN, Work, fast_step, make_method, plain_step, without_dropout
from benchmarks.train_step import BOUND
from mmrl import methods
from mmrl.clip import Clip
from mmrl.methods import Task
from tools import check_golden

SMALL = ["--backbone", "ViT-S-32-alt", "--layers", "2", "--batch", "2", "--threads", "1", "--repeats", "1"]
WORK = Work("ViT-S-32-alt", 2, "mmrl", classes=4, batch=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(common, "matrix_peak", functools.partial(common.matrix_peak, size=128))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return common.make_clip(WORK.backbone, WORK.layers)


def tables(text: str) -> list[list[dict[str, str]]]:
    """Markdown tables of `text`, each a list of rows by column name."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.strip().splitlines()]
            assert all(len(row) == len(head) for row in rows)
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def run(main: Any, arguments: list[str], out: Path) -> tuple[int, list[list[dict[str, str]]], dict[str, Any]]:
    code = main([*SMALL, *arguments, "--out", str(out)])
    return code, tables(out.read_text()), json.loads(out.with_suffix(".json").read_text())


def test_kernels(tmp_path: Path) -> None:
    code, (table,), numbers = run(kernels.main, ["--classes", "3", "--top", "2"], tmp_path / "kernels.md")
    assert code == 0 and [row["side"] for row in table] == ["plain"] * 3 + ["fast"] * 3
    for side in ("plain", "fast"):
        shares = [float(row["share"].rstrip("%")) for row in table if row["side"] == side]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        found = {each["name"]: each["seconds"] for each in numbers["kernels"][side]}
        assert "aten::addmm" in found and all(seconds > 0 for seconds in found.values())


def test_views(tmp_path: Path) -> None:
    out = tmp_path / "views.md"
    words = "--methods coop --datasets mini:digits --views 1 --seeds 1 --shots 1 --step-backbone ViT-S-32-alt --step-batch 1 --step-shots 2"
    assert views.main([*words.split(), "--out", str(out)]) == 0
    (none, one), (step,) = tables(out.read_text())
    assert (none["views"], none["less time"], one["views"]) == ("none", "1.0x", "1")
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert [row["views"] for row in numbers["trainings"]] == [None, 1]
    assert all(0 < row[key] <= 1 for row in numbers["trainings"] for key in ("base", "novel"))
    assert step["method"] == "coop" and numbers["steps"][0]["kept"] > 0


def test_feature_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--images", "6", "--classes", "3", "--method", "mmrl,gda,zero-shot,cocoop"]
    code, (table,), numbers = run(feature_cache.main, arguments, tmp_path / "cache.md")
    assert code == 0 and numbers["same"] is True
    assert [row["method"] for row in table] == ["zero-shot", "mmrl", "gda", "cocoop", "3 methods", "1 method", "all 4"]
    assert [row["reads"] for row in table[:4]] == ["frozen features", "images", "frozen features", "frozen features"]
    assert all(len(row["seconds"]["with"]) == 1 and row["seconds"]["with"][0] > 0 for row in numbers["rows"])
    evaluate = feature_cache.engine.evaluate_dataset

    def wrong(*given: Any, store: Any, **more: Any) -> Any:
        found = evaluate(*given, **more)
        return found._replace(adapted=found.adapted.model_copy(update={"top1": -1.0})) if store else found

    monkeypatch.setattr(feature_cache.engine, "evaluate_dataset", lambda *given, store=None, **more: wrong(*given, store=store, **more))
    assert run(feature_cache.main, arguments, tmp_path / "wrong.md")[0] == 1


def test_train_step(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "free_bytes", lambda: None)  # what else the machine does must not leave a side out
    few = ("mmrl", "prograd", "clip-lora", "tip-adapter-f")
    monkeypatch.setattr(train_step, "PLAIN", {name: PLAIN[name] for name in few})
    arguments = ["--classes", "3,5", "--plain-limit", "3", "--no-memory", "--method", "all", "--cpu-time"]
    code, (speed, work), numbers = run(train_step.main, arguments, tmp_path / "train.md")
    assert code == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "train.md").read_text().strip()
    assert [(row["method"], row["classes"]) for row in speed] == [(m, c) for m in few for c in ("3", "5")]
    for row, shown, counted in zip(numbers["rows"], speed, work, strict=True):
        assert float(shown["fast s/step"]) > 0
        assert float(counted[BOUND]) > 1.4 and shown[BOUND] == counted[BOUND]  # exact counts, not times
        if row["classes"] == 5:
            assert shown["plain s/step"] == "over --plain-limit 3" and shown["ratio"] == shown["largest gradient difference"] == "-"
            assert counted["plain, of matrix peak"] == "-" and counted["plain TFLOP"] != "-"  # extrapolated
            continue
        assert row["gradients"]["relative"] < 1e-4
        assert shown["largest gradient difference"].endswith("(dropout 0)") == (row["method"] == "clip-lora")
        assert shown["ratio"] == f"{row['median']['plain'] / row['median']['fast']:.2f}"
        assert len(row["seconds"]["plain"]) == len(row["seconds"]["fast"]) == 1
    found = {row["method"]: row for row in numbers["rows"]}
    assert found["tip-adapter-f"]["longest_prompt"] is None and found["prograd"]["longest_prompt"] > found["mmrl"]["longest_prompt"]
    assert found["mmrl"]["gradients"] is None and numbers["rows"][0]["gradients"]["tensors"] >= 10
    (shown,) = tables(step_table(numbers))
    assert shown[0]["method"] == "MMRL" and shown[1]["plain, s"] == "left out: over --plain-limit 3"
    assert "plain peak" not in shown[0] and shown[4]["largest gradient difference"].endswith("(dropout 0)")


def test_train_step_in_bf16_beside_plain_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "free_bytes", lambda: None)
    out, arguments = tmp_path / "bf16.md", ["--classes", "3", "--method", "mmrl", "--precision", "bf16"]
    code, (speed, _), numbers = run(train_step.main, arguments, out)
    assert code == 0 and "bf16 beside the plain form in float32" in out.read_text() and numbers["rows"][0]["memory"] == {}
    assert 1e-3 < numbers["rows"][0]["gradients"]["relative"] < 0.5 and float(speed[0]["ratio"]) > 0
    with pytest.raises(SystemExit, match="was measured with other no_memory, precision"):
        run(train_step.main, [*arguments[:-1], "fp32"], out)


def test_rows_measured_before_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "free_bytes", lambda: None)
    out, ways = tmp_path / "train.md", ["--no-memory", "--plain-limit", "1", "--classes"]
    run(train_step.main, [*ways, "3", "--method", "mma"], out)
    before = json.loads(out.with_suffix(".json").read_text())["rows"]
    _, (speed, _), numbers = run(train_step.main, [*ways, "3,4", "--method", "coop"], out)
    assert [(row["method"], row["classes"]) for row in speed] == [("coop", "3"), ("coop", "4"), ("mma", "3")]
    assert numbers["rows"][2] == before[0]
    with pytest.raises(SystemExit, match="was measured with other batch; give another --out"):
        run(train_step.main, [*ways, "3", "--method", "coop", "--batch", "3"], out)


def test_processor_time_needs_one_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_step.main(["--cpu-time", "--threads", "2"])
    assert "give --threads 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", PLAIN)
def test_both_sides_of_every_method_compute_the_same(name: str) -> None:
    """In float64, where nothing but a mistake can differ so little; also the optimiser's step that follows."""
    clip = common.make_clip(WORK.backbone, 2)
    clip.model.double()
    work = Work(WORK.backbone, 2, name, classes=4, batch=3)
    work = dataclasses.replace(work, options=without_dropout(work))
    torch.set_default_dtype(torch.float64)  # parameters and images alike
    try:
        fast, plain = fast_step(work, clip), plain_step(work, clip)
        fast(), plain()
        assert train_step.compare_gradients(fast, plain, name)["relative"] < 1e-9
        fast.backward(), plain.backward()
        assert train_step.compare_gradients(fast, plain, name)["relative"] < 1e-9
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_method_that_is_trained_by_steps_has_a_plain_side(clip: Clip) -> None:
    names = tuple(common.class_names(3))
    trained = set()
    for name, cls in here().items():
        if methods.build(name, clip, seed=0, task=Task(names, common.TEMPLATE, images=6)).trainable:
            trained.add(cls.name)
    assert trained == PLAIN.keys()


@pytest.mark.parametrize("name", ["coop", "cocoop", "clip-lora", "tip-adapter-f"])
def test_operations_of_a_plain_step_that_is_not_taken(name: str, clip: Clip) -> None:
    work = Work(WORK.backbone, WORK.layers, name, classes=9, batch=2)
    assert train_step.extrapolated_flops(work, clip) == common.count_flops(plain_step(work, clip).backward)


def test_plain_side_is_left_out_when_memory_is_short(monkeypatch: pytest.MonkeyPatch, clip: Clip) -> None:
    monkeypatch.setattr(train_step, "free_bytes", lambda: 2**20)
    assert "free are" in str(train_step.refusal(WORK, clip, None))
    monkeypatch.setattr(train_step, "free_bytes", lambda: 2**40)
    assert train_step.refusal(WORK, clip, None) is None
    assert str(train_step.refusal(WORK, clip, None, 1.0)).endswith("over --plain-memory 1")


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("tip-adapter-f", "ape-t")])  # which keep next to nothing
def test_estimate_of_the_plain_sides_memory_is_linear(name: str, clip: Clip) -> None:
    """Extrapolated from 2 and 6 classes; counted for 20."""
    work = Work(WORK.backbone, WORK.layers, name, classes=20, batch=2)
    weights = sum(p.untyped_storage().nbytes() for p in clip.model.parameters())
    trained = sum(4 * p.nbytes for p in make_method(work, clip).parameters())
    estimate = memory.plain_needs(work, clip) - memory.PROCESS - weights - trained
    assert estimate == pytest.approx(memory.OVER * memory._kept(work, clip, 20), rel=0.02)


def test_memory_of_a_fresh_process(clip: Clip) -> None:
    peak = memory.peak_of(Work(WORK.backbone, WORK.layers, "mmrl", classes=4, batch=2, text_memory=1e-5), "fast", threads=1)
    weights = sum(p.untyped_storage().nbytes() for p in clip.model.parameters())
    assert peak is not None and peak.most >= peak.before > weights
    assert peak.seconds > 0 and peak.chunk == 1


def test_text_memory_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {None: memory.Peak(2**30, 9 * 2**30, 1.5, None), 2.0: memory.Peak(2**30, 4 * 2**30, 2.5, 100), 0.5: None}
    monkeypatch.setattr(text_memory, "peak_of", lambda work, side, **_: peaks[work.text_memory])
    code, (table,), _ = run(text_memory.main, ["--method", "mmrl", "--memory", "2"], tmp_path / "memory.md")
    assert code == 0
    assert [(row["text memory"], row["prompts in a chunk"], row["peak"]) for row in table] == [
        ("no limit", "all", "9.00 GiB"),
        ("2 GiB", "100", "4.00 GiB"),
    ]
    assert run(text_memory.main, ["--method", "mmrl", "--memory", "2", "--goal", "3"], tmp_path / "memory.md")[0] == 1
    code, (table,), _ = run(text_memory.main, ["--method", "mmrl", "--memory", "0.5"], tmp_path / "memory.md")
    assert code == 1 and table[1]["peak"] == "killed: out of memory"


def test_what_a_prompt_in_the_chunk_takes() -> None:
    peaks = [memory.Peak(2**30, 2**30 + taken * 2**20, 1.0, chunk) for chunk, taken in ((10, 150), (20, 200), (40, 306))]
    found = text_memory.line("mmrl", peaks)
    assert found is not None and found.prompt / 2**20 == pytest.approx(5.2, abs=0.05) and 0 < found.off < 3 * 2**20
    assert text_memory.sentence(found).startswith("mmrl: a step takes 0.09 GiB, and 5.21 MiB for each prompt")
    assert text_memory.line("mmrl", peaks[:1]) is None


def test_inference(tmp_path: Path) -> None:
    code, (table,), numbers = run(inference.main, [], tmp_path / "inference.md")
    assert code == 0
    assert [row["image tower"] for row in table] == [inference.BARE, "zero-shot", "mmrl", "mmrlpp"]
    assert table[0]["of bare"] == "1.000"
    counted = {row["tower"]: row["flops_per_image"] for row in numbers["rows"]}
    assert counted["zero-shot"] < counted[inference.BARE]


def test_test_pipeline(tmp_path: Path) -> None:
    out = tmp_path / "pipeline.md"
    small = ["--images", "5", "--workers", "0,1", "--batch", "2", "--repeats", "1", "--threads", "1"]
    assert test_pipeline.main([*small, "--out", str(out)]) == 0
    (table,), numbers = tables(out.read_text()), json.loads(out.with_suffix(".json").read_text())
    assert [(row["workers"], row["largest difference"]) for row in table] == [("0", "0"), ("1", "0")]
    assert [row["ratio"] for row in table] == [f"{row['ratio']:.2f}" for row in numbers["rows"]] and 5e4 < numbers["bytes"] < 2e5


def test_rows(tmp_path: Path) -> None:
    out = tmp_path / "rows.md"
    assert rows.main(["--values", "2", "--methods", "", "--epochs", "1", "--shots", "2", "--batch", "2", "--out", str(out)]) == 0
    (table,), numbers = tables(out.read_text()), json.loads(out.with_suffix(".json").read_text())
    (measured,) = numbers["rows"].values()
    assert [row["rows"] for row in table] == ["mmrl, 2 values of lambda"] and measured["same"]
    assert float(table[0]["alone, s"]) == pytest.approx(measured["alone"][0], abs=0.05)


def test_names_are_distinct_and_stay_the_same_when_there_are_more(clip: Clip) -> None:
    names = common.class_names(1000)
    assert len(set(names)) == 1000 and names[:24] == common.class_names(24)
    assert {len(name.split()) for name in names} == {1, 2, 3, 4, 5}
    assert int(clip.tokenize(names)[1].max()) < 77


def test_methods_the_plain_side_does_not_know_are_refused(clip: Clip) -> None:
    with pytest.raises(SystemExit, match="mmrl, mmrlpp, coop"):
        make_method(Work("ViT-S-32-alt", 2, "zero-shot", 3, 2), clip)


# ---- docs/methods.md ----

PAGE = ROOT / "docs" / "methods.md"


@pytest.mark.slow
def test_page_of_methods_has_what_the_command_prints() -> None:
    """Also lines and parameters: `python -m benchmarks.methods --write docs/methods.md` puts them there."""
    rows = linked(method_rows(common.make_clip("ViT-B-16")), PAGE.parent)
    assert put(PAGE.read_text(), "methods", common.markdown(COLUMNS, rows)) == PAGE.read_text()


def test_page_links_to_files_that_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE.read_text())
    assert len(targets) > len(PLAIN) and all((PAGE.parent / target).exists() for target in targets)


def test_golden_table(monkeypatch: pytest.MonkeyPatch) -> None:
    error, single = check_golden.Error(1e-7, 3e-7), {"a": check_golden.Error()}
    pair = check_golden.Pair({"a": error, "b": check_golden.Error(2e-7, 1e-7)}, single)
    monkeypatch.setattr(check_golden, "check_folder", lambda _: {"mma": pair, "mma_scale": pair, "nobody": None, "lpclip/x": pair})
    rows = {row[0]: row[1:] for row in golden_rows([Path()])}
    assert rows["MMA"] == ["mma, mma_scale", "2.0e-07", "3.0e-07"] and rows["Linear probe"][0] == "lpclip/x"
    assert rows["CoOp"] == ["-", "-", "-"]
    monkeypatch.setattr(check_golden, "check_folder", lambda _: {"mma": check_golden.GoldenError("no")})
    with pytest.raises(SystemExit, match="no"):
        golden_rows([Path()])


def test_tables_are_put_between_their_marks() -> None:
    page = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    assert put(page, "a", r"new \1") == "before\n<!-- a -->\nnew \\1\n<!-- /a -->\nafter\n"
    with pytest.raises(SystemExit, match="no marks"):
        put(page, "b", "new")


def test_the_page_has_the_miniature_results() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    table = mini_table(ROOT / "results" / "mini")
    assert put(page, "mini", table) == page
    assert table.count("\n") == 1 + len(here()) and "| MMRL | " in table and " n/a |" in table


def test_gpu_on_a_processor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--device", "cpu", "--method", "mmrl", "--classes", "3", "--batches", "2", "--many", "7"]
    code, (steps, towers), numbers = run(gpu.main, small, tmp_path / "gpu.md")
    assert code == 0
    rows = [("2", "3", "fp32"), ("2", "7", "fp32"), ("2", "3", "bf16"), ("2", "7", "bf16")]
    assert [(row["batch"], row["classes"], row["precision"]) for row in steps] == rows
    for row, shown in zip(numbers["rows"], steps, strict=True):
        assert float(shown["fast ms"]) > 0 and float(shown["images/s"]) > 0
        assert float(shown["compiled ms"]) > 0 and (shown["compiled ratio"] == "-") == (row["classes"] == 7)
        assert (shown["plain ms"] == "left out") == (row["classes"] == 7) == (row["gradients"] is None)
    assert numbers["rows"][0]["gradients"]["relative"] < 1e-4 < numbers["rows"][2]["gradients"]["relative"] < 0.5
    assert [(row["image tower"], row["precision"]) for row in towers] == [(t, p) for p in ("fp32", "bf16") for t in (gpu.BARE, "mmrl")]
    with pytest.raises(SystemExit):
        gpu.main(["--precision", "int8"])
    assert "--precision int8: fp32, bf16, fp16" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main([])
        assert "finds no CUDA device" in capsys.readouterr().err


def test_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    took = {1: grid.Took(100.0, 99.0, 0.01), 2: grid.Took(54.0, 104.0, 0.02)}
    scores = [{"a": 0.5, "b": 0.25}, {"a": 0.5, "b": 0.25}]
    monkeypatch.setattr(grid, "compute", lambda data, out, count, options: (took[count], scores[count - 1]))
    out = tmp_path / "grid.md"
    assert grid.main(["--seeds", "1", "--out", str(out)]) == 0
    (table,) = tables(out.read_text())
    assert [(row["processes"], row["ratio"], row["of N"]) for row in table] == [("1", "1.00", "1.00"), ("2", "1.85", "0.93")]
    scores[1] = {"a": 0.5, "b": 0.26}
    assert grid.main(["--seeds", "1"]) == 1
    assert grid.busy() is None or grid.busy() > 0


def test_bulk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    bulk.make(folder, 120)
    assert len({path.stat().st_ino for path in folder.rglob("*.jpg")}) == bulk.FILES and len(bulk.names(folder, 120)) == 120
    for way in ("stream", "all", "one"):
        words = ["--side", way, "--folder", str(folder), "--images", "120", "--backbone", "small"]
        assert bulk.main(words) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["processor"] > 0

    def made(which: str, folder: Path, count: int, backbone: str, threads: int) -> dict[str, Any]:
        took = count / {"one": 10, "all": 40, "stream": 50}[which]
        return {"way": which, "images": count, "processor": took, "seconds": took, "above": 2**20 * (1 if which == "stream" else count)}

    monkeypatch.setattr(bulk, "run", made)
    out = tmp_path / "bulk.md"
    assert bulk.main(["--images", "20", "--repeats", "1", "--out", str(out)]) == 0
    speeds, peaks = tables(out.read_text())
    assert [row["of one at a time"] for row in speeds] == ["1.00", "4.00", "5.00"] and speeds[2]["of all at once"] == "1.25"
    assert [(row["images"], row["bytes an image more"]) for row in peaks] == [("20", ""), ("200", "1048576"), ("20", ""), ("200", "0")]
