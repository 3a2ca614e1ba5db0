"""The precision 'auto': what the device computes in natively, said in the output and in the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl import engine
from mmrl.clip import Clip
from mmrl.engine import precision
from mmrl.engine.precision import chosen_precision
from tests.unit.colours import clip_on_one_thread, fresh, noise, train

clip = pytest.fixture(scope="module")(clip_on_one_thread)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("machine", "able", "chosen"),
    [
        ("x86_64", {"_is_avx512_bf16_supported"}, "bf16"),
        ("x86_64", {"_is_amx_tile_supported"}, "bf16"),
        ("x86_64", {"mkldnn"}, "fp32"),  # which emulates it
        ("aarch64", {"mkldnn"}, "bf16"),
        ("arm64", {"_is_amx_tile_supported"}, "fp32"),
    ],
)
def test_what_a_processor_computes_in(monkeypatch: pytest.MonkeyPatch, machine: str, able: set[str], chosen: str) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in able, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: "mkldnn" in able, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    value, why = chosen_precision(CPU)
    assert value == chosen and ("does not" in why) == (chosen == "fp32")


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_it_does_not_count(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    expected = ("bf16", "Card 1 computes in bf16 natively") if native else ("fp32", "Card 1 does not compute in bf16 natively")
    assert chosen_precision(torch.device("cuda")) == expected


@pytest.mark.parametrize("native", [True, False])
def test_a_training_is_one_in_what_was_chosen(clip: Clip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: bool) -> None:
    monkeypatch.setattr(precision, "_cpu_bf16", lambda: native)
    chosen = "bf16" if native else "fp32"
    auto, same = (engine.FitConfig(epochs=1, warmup_epochs=0, batch_size=2, precision=given) for given in ("auto", chosen))
    result = train(fresh(clip), noise(2), auto, tmp_path)
    assert result.config.precision == chosen
    assert result.history == train(fresh(clip), noise(2), same).history
    assert train(fresh(clip), noise(2), same, tmp_path, resume=True).loaded  # the same run


def test_command_and_record_say_it(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "_cpu_bf16", lambda: True)
    keys = {}
    for given in ("auto", "bf16"):
        out = tmp_path / given
        words = ("train", "--method", "coop", "--backbone", "tiny", "--data", "mini:digits", "--shots", "1", "--set", "iterations=1")
        code, printed, err = cli(*words, "--set", f"precision={given}", "--set", "warmup_epochs=0", "--out", out)
        assert code == 0, err
        assert ("precision is auto: bf16, as this processor computes in bf16 natively" in printed + err) == (given == "auto")
        run = json.loads((out / "run.json").read_text())
        keys[given] = run["key"]
        option = next(option for option in run["training"]["options"] if option["key"] == "precision")
        assert option["value"] == "bf16" and option["source"].startswith("auto: this processor") == (given == "auto")
    assert keys["auto"] == keys["bf16"]
    assert engine.FitConfig().precision == "fp32"
