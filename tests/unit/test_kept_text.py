"""Zero-shot text features of long lists: read back to the bit, never taken for others, bounded; and prompts held in half precision."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl import engine, methods
from mmrl.clip import Clip, identities, kept_text, random_clip
from mmrl.engine import FitConfig
from mmrl.errors import UsageError
from tests.conftest import SMALL
from tests.unit.test_memory import small_batch

ROOT = Path(__file__).parents[2]
NAMES = [f"sort {i // 7} kind {i % 7}" for i in range(140)]  # more than are encoded at a time
TEMPLATE = "a photo of a {}."


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(identities.PLACE, str(tmp_path / "cache"))
    monkeypatch.setattr(kept_text, "LEAST", 100)
    return kept_text.folder()


@pytest.fixture(scope="module")
def clip() -> Clip:
    return random_clip("ViT-B-32", **SMALL)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.rows"))


def without_disk(clip: Clip, template: str | list[str] = TEMPLATE, names: list[str] = NAMES) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_text, "LEAST", 10**9)
        return clip.class_list(names, template).zero_shot


@pytest.mark.parametrize("template", [TEMPLATE, [TEMPLATE, "art of the {}."]], ids=["one template", "two, averaged"])
def test_the_same_bits_with_and_without_the_disk(clip: Clip, cache: Path, template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = without_disk(clip, template)
    assert not kept(cache)
    assert torch.equal(clip.class_list(NAMES, template).zero_shot, expected) and len(kept(cache)) == 1
    monkeypatch.setattr(Clip, "encode_prompts", lambda *_, **__: pytest.fail("it was computed again"))
    for start in range(clip.text.depth):  # whatever layer a method edits first
        again = clip.class_list(NAMES, template, start=start).zero_shot
        assert torch.equal(again, expected) and again.dtype == torch.float32
    if isinstance(template, str):
        assert torch.equal(clip.encode_text([template.format(name) for name in NAMES]), expected)


def test_a_list_that_is_made_for_any_first_layer_is_kept_as_one(clip: Clip, cache: Path) -> None:
    for start in range(clip.text.depth):
        assert torch.equal(clip.class_list(NAMES, TEMPLATE, start=start).zero_shot, without_disk(clip))
        (file,) = kept(cache)
        file.unlink()


@pytest.mark.parametrize("what", ["names", "order", "template", "weights", "type", "length", "code", "releases", "threads"])
def test_all_that_decides_is_in_the_name(what: str, clip: Clip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip.class_list(NAMES, TEMPLATE)
    names, template, other = list(NAMES), TEMPLATE, clip
    if what == "names":
        names[3] = "another"
    elif what == "order":
        names.reverse()
    elif what == "template":
        template = "a drawing of a {}."
    elif what in ("weights", "type"):
        other = random_clip("ViT-B-32", **SMALL)
        if what == "type":
            other.model.double()
        else:
            with torch.no_grad():
                other.text.text.text_projection.mul_(1.5)
    elif what == "length":
        unit, free = clip.encode_text(NAMES), clip.encode_text(NAMES, normalise=False)
        assert len(kept(cache)) == 3 and not torch.equal(unit, free)
        return
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    else:
        monkeypatch.setattr(identities, what, lambda: ("another",))
    assert torch.equal(other.class_list(names, template).zero_shot, without_disk(other, template, names))
    assert len(kept(cache)) == 2


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty"])
def test_a_damaged_file_is_computed_anew(damage: str, clip: Clip, cache: Path) -> None:
    expected = clip.class_list(NAMES, TEMPLATE).zero_shot
    (file,) = kept(cache)
    whole = file.read_bytes()
    file.write_bytes({"a bit": whole[:500] + bytes([whole[500] ^ 4]) + whole[501:], "cut": whole[:-3], "empty": b""}[damage])
    assert torch.equal(clip.class_list(NAMES, TEMPLATE).zero_shot, expected)
    assert [each.read_bytes() for each in kept(cache)] == [whole]


def test_the_folder_is_bounded(clip: Clip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip.class_list(NAMES, TEMPLATE)
    size = kept(cache)[0].stat().st_size
    monkeypatch.setattr(kept_text, "MOST_GIB", 2.5 * size / 2**30)
    for i in range(5):
        for file in kept(cache):  # of some time ago
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 100))
        clip.class_list(NAMES, f"number {i}: {{}}.")
        assert sum(file.stat().st_size for file in kept(cache)) <= 2.5 * size and (i == 0 or len(kept(cache)) == 2)
    monkeypatch.setattr(kept_text, "MOST_GIB", 0.5 * size / 2**30)
    assert torch.equal(clip.class_list(NAMES, "a new {}.").zero_shot, without_disk(clip, "a new {}."))
    assert len(kept(cache)) == 2


def test_what_is_not_kept(clip: Clip, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip.class_list(NAMES[:99], TEMPLATE)  # a short list
    with torch.autocast("cpu", torch.bfloat16):
        clip.class_list(NAMES, TEMPLATE)
    assert not kept(cache)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(identities.PLACE, str(tmp_path / "file"))
    assert torch.equal(clip.class_list(NAMES, TEMPLATE).zero_shot, without_disk(clip))


def test_several_processes_and_one_that_is_killed_while_it_writes(clip: Clip, cache: Path) -> None:
    code = f"""
import os, signal, sys, torch
from mmrl import rows
from mmrl.clip import kept_text, load_clip
torch.set_num_threads(1)
kept_text.LEAST = 100
if sys.argv[1] == "killed":
    put = rows.NewRows.put
    def half(self, at, table):
        put(self, at, table[: len(table) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    rows.NewRows.put = half
features = load_clip("tiny").class_list({NAMES}, {TEMPLATE!r}).zero_shot
print(hash(features.numpy().tobytes()))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "0"}

    def begin(how: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code, how], env=environment, stdout=subprocess.PIPE, text=True)

    killed = begin("killed")
    assert killed.wait(timeout=240) == -9 and not kept(cache) and list(cache.glob(".*.partial"))
    both = [begin("well"), begin("well")]
    assert len({process.communicate(timeout=240)[0] for process in both}) == 1
    assert [process.returncode for process in both] == [0, 0] and len(kept(cache)) == 1


# ---- half precision ----


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mmrl", "coop", "maple"])
def test_prompts_in_half_precision_take_half_the_memory(name: str, kind: torch.dtype, clip: Clip) -> None:
    method = methods.build(name, clip, {}, seed=0).eval()
    whole = method.class_list(NAMES, TEMPLATE)
    half = whole.prompts_in(kind)
    assert half.fed.hidden.body.nbytes * 2 == whole.fed.hidden.body.nbytes and torch.equal(half.zero_shot, whole.zero_shot)
    with torch.no_grad():
        features = [method.text_features(each) for each in (whole, half)]  # type: ignore[operator]
    assert features[1].dtype == torch.float32 and not torch.equal(*features)
    assert (features[0] * features[1]).sum(-1).min() > 0.999
    assert torch.equal(whole.fed.hidden.body, method.class_list(NAMES, TEMPLATE).fed.hidden.body)  # the list itself is as it was


def test_a_training_holds_them_so(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[torch.dtype]()
    encode = Clip.encode_prompts

    def watched(self: Clip, prompts: Any, *args: Any, **options: Any) -> torch.Tensor:
        seen.append(prompts.hidden.body.dtype)
        return encode(self, prompts, *args, **options)

    monkeypatch.setattr(Clip, "encode_prompts", watched)
    losses = []
    for precision in ("fp32", "bf16"):
        method = methods.build("mmrl", clip, {"rep_dim": 8}, seed=0)
        data = engine.TrainingData(small_batch(clip, 40), tuple(NAMES[:40]), TEMPLATE)
        options = {"epochs": 2, "batch_size": 2, "text_precision": precision}
        losses.append([row["loss"] for row in engine.fit(method, data, options, engine.Place(progress=False)).history])
    assert seen[-1] == torch.bfloat16 and torch.float32 in seen
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("name", ["clip-adapter", "provp", "tip-adapter-f"])
def test_it_is_refused_where_no_step_reads_prompts(name: str, clip: Clip) -> None:
    method = methods.build(name, clip, {}, seed=0, task=methods.Task(tuple(NAMES[:4]), TEMPLATE, 4))
    data = engine.TrainingData(small_batch(clip, 4), tuple(NAMES[:4]), TEMPLATE)
    with pytest.raises(UsageError, match=f"text_precision is 'fp16', which has no effect on method '{name}'.*Leave it out"):
        engine.fit(method, data, {"text_precision": "fp16"}, engine.Place(progress=False))


def test_the_default_is_not_mentioned_in_a_runs_identity() -> None:
    assert "text_precision" not in FitConfig().identity()
    assert FitConfig(text_precision="bf16").identity() == FitConfig().identity() | {"text_precision": "bf16"}


def test_a_list_without_prompts_stays_as_it_is(clip: Clip) -> None:
    bare = replace(clip.class_list(NAMES[:3], TEMPLATE), prompts=None)
    assert bare.prompts_in(torch.float16) is bare
