"""Adapters: what is in the folder, and what is said when it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.errors import MmrlError, UsageError
from tests.unit.colours import NAMES, clip_on_one_thread, fresh, smallest_clip

TEMPLATE = "a photo of {}."


clip = pytest.fixture(scope="module")(clip_on_one_thread)


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    return engine.save_adapter(tmp_path / "adapter", fresh(clip, lam=0.25), classes=NAMES, template=TEMPLATE)


def edit(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_round_trip(clip: Clip, tmp_path: Path, name: str) -> None:
    method = fresh(clip, name, alpha=0.4)
    engine.save_adapter(tmp_path, method, classes=NAMES, template=TEMPLATE)
    loaded, config = engine.load_adapter(tmp_path, clip)
    assert loaded.name == name and loaded.options == method.options and not loaded.training
    assert (config.class_names, config.template, config.backbone_hash) == (NAMES, TEMPLATE, clip.identity)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in method.state_dict().items())


def test_only_trained_tensors_are_in_the_file(folder: Path, clip: Clip) -> None:
    assert set(load_file(folder / "adapter_model.safetensors")) == {name for name, _ in fresh(clip).named_parameters()}
    assert {path.name for path in folder.iterdir()} == {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert all(name in (folder / "README.md").read_text() for name in NAMES)


def test_zero_shot_has_an_adapter_too(clip: Clip, tmp_path: Path) -> None:
    engine.save_adapter(tmp_path, methods.build("zero-shot", clip), classes=(), template=TEMPLATE)
    assert engine.load_adapter(tmp_path, clip)[0].name == "zero-shot"


def test_another_backbone(folder: Path) -> None:
    with pytest.raises(UsageError, match="made for the backbone 'ViT-B-32/random'.*is another one"):
        engine.load_adapter(folder, smallest_clip(seed=1))


def test_edited_tensors(folder: Path, clip: Clip) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["rep_space"] = tensors["rep_space"] + 1
    save_file(tensors, path)
    with pytest.raises(MmrlError, match="edited, cut or exchanged"):
        engine.load_adapter(folder, clip)


def test_truncated_tensors(folder: Path, clip: Clip) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MmrlError, match="edited, cut or exchanged"):
        engine.load_adapter(folder, clip)


def test_missing_files(folder: Path, clip: Clip, tmp_path: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MmrlError, match=r"lacks adapter_model\.safetensors"):
        engine.load_adapter(folder, clip)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(UsageError, match=r"lacks adapter_config\.json"):
        engine.load_adapter(folder, clip)
    with pytest.raises(UsageError, match="no folder with an adapter"):
        engine.load_adapter(tmp_path / "nowhere", clip)


@pytest.mark.parametrize(("values", "message"), [
    ({"method": "mmrlp"}, "is of the method 'mmrlp', which is not known here"),
    ({"format": 99, "version": "7.0"}, "later version .mmrl 7.0, format 99"),
    ({"surprise": 1}, "is damaged.*surprise"),
    ({"class_names": 3}, "is damaged.*class_names is 3"),
    ({"options": {"rep_tokens": 3, "rep_dim": 8}}, r"do not fit.*'rep_space' of shape \(2, 8\) where the options give \(3, 8\)"),
    ({"options": {"rep_token": 2}}, "unknown option of mmrl 'rep_token'.*'rep_tokens'"),
])  # fmt: skip
def test_edited_configuration(folder: Path, clip: Clip, values: dict[str, object], message: str) -> None:
    edit(folder, **values)
    with pytest.raises(MmrlError, match=message):
        engine.load_adapter(folder, clip)


def test_configuration_that_is_no_json(folder: Path, clip: Clip) -> None:
    (folder / "adapter_config.json").write_text('{"method": "mm')
    with pytest.raises(MmrlError, match="adapter configuration is damaged"):
        engine.load_adapter(folder, clip)


def test_backbone_that_is_gone(folder: Path) -> None:
    edit(folder, backbone="/nowhere/clip.pt")
    with pytest.raises(UsageError, match="The adapter in .* needs it."):
        engine.load_adapter(folder)


def test_somebody_elses_readme_stays(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="choose another folder"):
        engine.save_adapter(tmp_path, fresh(clip), classes=NAMES, template=TEMPLATE)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_bad_names_are_not_saved(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stands twice"):
        engine.save_adapter(tmp_path / "x", fresh(clip), classes=["a b", "a_b"], template=TEMPLATE)
    assert not (tmp_path / "x").exists()
