"""Every way to get a backbone, on files made in the published formats."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mmrl.clip import load_clip
from mmrl.errors import MmrlError, UsageError
from tests.oracle.pair import relative_error

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "image_size": 16},
    "text_cfg": {"layers": 2, "width": 64, "heads": 1, "context_length": 77, "vocab_size": 49408},
    "quick_gelu": True,
}
PROMPTS = ["a photo of a cat.", "a dog"]


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(3)
    return open_clip.CLIP(**CONFIG).eval()


@pytest.fixture(scope="module")
def weights(model: open_clip.CLIP) -> dict[str, torch.Tensor]:
    return {k: v.detach().half() if v.is_floating_point() else v for k, v in model.state_dict().items()}


def write(kind: str, folder: Path, model: open_clip.CLIP, weights: dict[str, torch.Tensor]) -> str:
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "clip.safetensors")
        return str(folder / "clip.safetensors")
    if kind == "local-dir":
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}))
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "open_clip_model.safetensors")
        return f"local-dir:{folder}"
    path = folder / "clip.pt"
    if kind == "state dict":
        torch.save(weights, path)
    elif kind == "training checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, path)
    else:  # the archive OpenAI published: a traced module, with three numbers beside its tensors
        half = open_clip.CLIP(**CONFIG).eval()
        half.load_state_dict({k: v.float() for k, v in weights.items()})
        for name in ("input_resolution", "context_length", "vocab_size"):
            if hasattr(half, name):
                delattr(half, name)
            half.register_buffer(name, torch.tensor({"input_resolution": 16, "context_length": 77, "vocab_size": 49408}[name]))
        image, text = torch.randn(1, 3, 16, 16), torch.zeros(1, 77, dtype=torch.long)
        torch.jit.trace(half, (image, text), check_trace=False).save(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["jit archive", "state dict", "training checkpoint", "safetensors", "local-dir"])
def test_all_formats_give_the_same_model(kind: str, tmp_path: Path, model: open_clip.CLIP, weights: dict[str, torch.Tensor]) -> None:
    clip = load_clip(write(kind, tmp_path, model, weights))
    assert (clip.image_size, clip.context_length, clip.embed_dim, clip.vision.depth, clip.text.width) == (16, 77, 32, 2, 64)
    reference = open_clip.CLIP(**CONFIG).eval()
    reference.load_state_dict({k: v.float() for k, v in weights.items()})
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert relative_error(clip.encode_image(image), reference.encode_image(image, normalize=True)) < 1e-4
        tokens = open_clip.get_tokenizer("ViT-B-32")(PROMPTS)
        assert relative_error(clip.encode_text(PROMPTS), reference.encode_text(tokens, normalize=True)) < 1e-4
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in clip.model.parameters())
    assert clip.mean == ((0.1, 0.2, 0.3) if kind == "local-dir" else open_clip.constants.OPENAI_DATASET_MEAN)


def test_float32_weights_are_not_rounded(tmp_path: Path, model: open_clip.CLIP) -> None:
    clip = load_clip(write("safetensors", tmp_path, model, {k: v.detach() for k, v in model.state_dict().items()}))
    assert all(torch.equal(v, clip.model.state_dict()[k]) for k, v in model.state_dict().items())


def test_arch_with_a_checkpoint_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    path = tmp_path / "open_clip.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    clip = load_clip(f"ViT-S-32-alt/{path}")
    assert all(torch.equal(v, clip.model.state_dict()[k]) for k, v in model.state_dict().items())


class Payload:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.target,)


def test_nothing_in_a_file_is_executed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    target = tmp_path / "executed"
    torch.save({"state_dict": weights, "extra": Payload(str(target))}, tmp_path / "clip.pt")
    with pytest.raises(MmrlError, match=r"cannot read .*clip\.pt"):
        load_clip(str(tmp_path / "clip.pt"))
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(str(target))))
    with pytest.raises(MmrlError, match=r"cannot read .*plain\.pt"):
        load_clip(str(tmp_path / "plain.pt"))
    assert not target.exists()


def test_files_that_are_no_clip(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({"rep_space": torch.zeros(2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(UsageError, match=r"no CLIP in OpenAI's layout.*from_pretrained"):
        load_clip(str(tmp_path / "adapter.safetensors"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UsageError, match="should hold named tensors"):
        load_clip(str(tmp_path / "list.pt"))
    save_file({k: v.contiguous() for k, v in weights.items() if "ln_final" not in k}, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match="no CLIP in OpenAI's layout"):
        load_clip(str(tmp_path / "part.safetensors"))
    cut = tmp_path / "cut.safetensors"
    save_file({k: v.contiguous() for k, v in weights.items()}, cut)
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(MmrlError, match=r"cannot read .*cut\.safetensors"):
        load_clip(str(cut))


def test_identity_tells_weights_apart(tmp_path: Path, model: open_clip.CLIP, weights: dict[str, torch.Tensor]) -> None:
    one = load_clip(write("safetensors", tmp_path, model, weights)).identity
    assert one == load_clip(write("state dict", tmp_path, model, weights)).identity
    changed = {**weights, "ln_final.weight": weights["ln_final.weight"] + 0.01}
    assert one != load_clip(write("safetensors", tmp_path, model, changed)).identity


def test_tiny_is_a_real_clip() -> None:
    clip = load_clip("tiny")
    assert (clip.name, clip.image_size, clip.vision.depth, clip.text.depth) == ("tiny", 64, 8, 8)
    assert clip.not_staged is None
