"""Numbers that are not finite: what is kept of such a training scores, and nothing classifies or is written with the rest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from mmrl import engine, methods
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.engine.checkpoint import read_state
from mmrl.engine.guard import NonFiniteError
from mmrl.errors import MmrlError
from tests.unit.colours import NAMES, OPTIONS, PROMPT, Same, clip_on_one_thread, colours, fresh, items, noise, read, train, train_on

CLOSED_FORMS = ("ape", "clap", "gda", "linear-probe", "lpp", "tip-adapter")


@pytest.fixture(scope="module")
def clip() -> Iterator[Clip]:
    yield from clip_on_one_thread()


def blown_up(clip: Clip, name: str, out: Path | None, lr: float = 1e30) -> methods.Method:
    method = methods.build(name, clip, OPTIONS, seed=1)
    config = engine.FitConfig(epochs=2, warmup_epochs=0, lr=lr, batch_size=2)
    with pytest.raises(NonFiniteError, match=r"step 2: .* is not finite; the trained tensor '[\w.]+' had grown to \d.*e\+\d\d"):
        train(method, noise(3), config, out)
    return method


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_last_good_scores(clip: Clip, tmp_path: Path, name: str) -> None:
    """A learning rate of 1e30 makes weights of 1e30, which are finite themselves: they must not be what is kept."""
    method = blown_up(clip, name, tmp_path)
    kept, config = engine.load_adapter(tmp_path / "last_good", clip)
    initial = methods.build(name, clip, OPTIONS, seed=1)
    for key, value in initial.state_dict().items():
        assert torch.equal(kept.state_dict()[key], value) and torch.equal(method.state_dict()[key], value)
    scores = engine.evaluate_dataset(kept, colours(), seen=True).adapted
    assert 0 <= scores.top1 <= 1
    assert config.class_names == NAMES


class Poisoned(torch.optim.SGD):
    """Its steps leave one tensor that is not a number."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))


def trained_by_steps() -> list[str]:
    ours = [name for name, cls in methods.registered().items() if cls.__module__.startswith("mmrl.")]
    return [name for name in ours if name not in ("zero-shot", *CLOSED_FORMS)]


@pytest.mark.parametrize("name", trained_by_steps())
@pytest.mark.parametrize("where", ["image", "parameter", "last step"])
def test_every_trained_method_keeps_the_last_good(
    small_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    """Also those with gradients of their own, more steps on a batch, or a cache of the training images."""
    method = methods.build(name, small_clip, seed=1)
    first, second = noise(2, size=4)
    if where == "image":
        second[0][0, 0, 0, 0] = float("nan")
    else:
        monkeypatch.setattr(method, "optimizer", lambda parameters, fit: Poisoned(parameters, lr=1e-3))
    config = engine.FitConfig(epochs=1, warmup_epochs=0, lr=1e-3, batch_size=4, optimizer="sgd")
    data = engine.TrainingData.of(small_clip, colours(), items(0, 4), config)
    batches = Same([first] if where == "last step" else [first, second])
    named = "an input image" if where == "image" else r"parameter '[\w.]+'"
    with pytest.raises(NonFiniteError, match=f"step {1 if where == 'last step' else 2}: {named} is not finite.*last_good"):
        engine.fit(method, dataclasses.replace(data, batches=batches), config, engine.Place(tmp_path, progress=False))
    kept, _ = engine.load_adapter(tmp_path / "last_good", small_clip)
    assert all(bool(p.isfinite().all()) for p in kept.parameters())
    assert 0 <= engine.evaluate_dataset(kept, colours(), seen=True).adapted.top1 <= 1


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_closed_form_of_features_that_are_not_finite(
    small_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    encode = Clip.encode_image

    def broken(self: Clip, images: torch.Tensor, *, normalise: bool = True) -> torch.Tensor:
        features = encode(self, images, normalise=normalise)
        features[1, 0] = float("nan")
        return features

    monkeypatch.setattr(Clip, "encode_image", broken)
    with pytest.raises(MmrlError, match=r"the frozen features of 'red/1' are not finite \(1 of 8 images\)"):
        train_on(methods.build(name, small_clip, seed=1), colours(), items(0, 2), {}, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()


def test_nothing_is_kept_where_nothing_scores(clip: Clip, tmp_path: Path) -> None:
    method = fresh(clip)
    with torch.no_grad():
        method.projection[0, 0] = float("nan")  # type: ignore[operator]
    config = engine.FitConfig(epochs=1, warmup_epochs=0, batch_size=2)
    with pytest.raises(NonFiniteError, match="parameter 'projection' is not finite"):
        train(method, noise(1), config, tmp_path)
    assert not (tmp_path / "last_good").exists()


def test_what_is_not_finite_is_not_written_loaded_or_used(clip: Clip, tmp_path: Path) -> None:
    method = fresh(clip)
    engine.save_adapter(tmp_path, method, classes=NAMES, template=PROMPT)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["projection"][0, 0] = float("inf")
    content = save(tensors)
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["sha256"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MmrlError, match="tensor 'projection' of .*adapter_model.safetensors has values that are not finite"):
        engine.load_adapter(tmp_path, clip)
    with torch.no_grad():
        method.projection[0, 0] = float("nan")  # type: ignore[operator]
    with pytest.raises(MmrlError, match="tensor 'projection' of the method has values that are not finite"):
        engine.save_adapter(tmp_path / "other", method, classes=NAMES, template=PROMPT)
    assert not (tmp_path / "other").exists()
    with pytest.raises(MmrlError, match="the scores are not finite"):
        Classifier(method, trained=NAMES).predict(read("red/1"))


def test_a_flipped_bit_of_a_state_is_found(clip: Clip, tmp_path: Path) -> None:
    """torch reads most states with a bit flipped without a word: each is refused here, wherever the bit is."""
    config = engine.FitConfig(epochs=1, warmup_epochs=0, batch_size=2)
    train(fresh(clip), noise(1), config, tmp_path)
    path = tmp_path / "training_state.bin"
    whole = path.read_bytes()
    assert read_state(path)["finished"]
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (200,), generator=generator).tolist():
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        path.write_bytes(bytes(altered))
        with pytest.raises(MmrlError, match="training state is damaged"):
            train(fresh(clip), noise(1), config, tmp_path, resume=True)
