"""Backbones from outside: the activation they were trained with, what open_clip warns of, no network."""

from __future__ import annotations

import logging
import socket
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.model import set_model_preprocess_cfg

from mmrl.clip import load_clip
from mmrl.clip.device import best_device, checked_device
from mmrl.clip.outside import heeded, without_waiting
from mmrl.errors import MmrlError, Notice, UsageError

OFFLINE = (
    "^cannot load the backbone 'ViT-B-16-quickgelu/openai': it was not downloaded before, and https://huggingface.co does not answer. "
    "Weights are downloaded once and then cached; without a network, give a local file or local-dir:FOLDER.$"
)
SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 16, "patch_size": 8, "image_size": 16, "head_width": 16},
    "text_cfg": {"layers": 1, "width": 16, "heads": 1, "context_length": 77, "vocab_size": 49408},
}


def small(quick_gelu: bool) -> open_clip.CLIP:
    model = open_clip.CLIP(**SMALL, quick_gelu=quick_gelu).eval()
    set_model_preprocess_cfg(model, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"})
    return model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What open_clip is asked for; it gives a small model with the architecture's activation."""
    calls: list[tuple[str, Any]] = []

    def create(name: str, pretrained: Any = None, **_: Any) -> open_clip.CLIP:
        calls.append((name, pretrained))
        return small(bool((open_clip.get_model_config(name) or {}).get("quick_gelu")))

    monkeypatch.setattr(open_clip, "create_model", create)
    return calls


def activations(clip: Any) -> set[str]:
    return {type(module).__name__ for module in clip.model.modules() if "GELU" in type(module).__name__}


@pytest.mark.parametrize(("name", "used"), [
    ("ViT-B-16/openai", "ViT-B-16-quickgelu/openai"), ("ViT-L-14/metaclip_400m", "ViT-L-14-quickgelu/metaclip_400m"),
    ("ViT-B-16-quickgelu/openai", "ViT-B-16-quickgelu/openai"), ("ViT-B-16/laion2b_s34b_b88k", "ViT-B-16/laion2b_s34b_b88k"),
])  # fmt: skip
def test_weights_get_the_activation_they_were_trained_with(asked: list[tuple[str, Any]], name: str, used: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        clip = load_clip(name, device="cpu")
    arch, _, tag = used.partition("/")
    assert asked == [(arch, tag)] and clip.name == used
    assert activations(clip) == ({"QuickGELU"} if "quickgelu" in arch else {"GELU"})
    notes = [str(each.message) for each in said if issubclass(each.category, Notice)]
    expected = f"'{name}' was trained with QuickGELU, which '{arch}' computes and '{name.partition('/')[0]}' does not: '{used}' is used."
    assert notes == ([expected] if name != used else [])


def test_the_hint_names_what_would_be_used() -> None:
    with pytest.raises(UsageError, match="'ViT-B-16' needs its weights: ViT-B-16-quickgelu/openai, ViT-B-16/laion400m_e31"):
        load_clip("ViT-B-16")


def test_no_warning_is_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def create(name: str, **_: Any) -> open_clip.CLIP:
        logging.warning("No pretrained weights loaded for model 'x'. Model initialized randomly.")
        warnings.warn("These pretrained weights were trained with something else.", UserWarning, stacklevel=1)
        warnings.warn("timm.models.layers is deprecated", FutureWarning, stacklevel=1)
        return small(quick_gelu=True)

    monkeypatch.setattr(open_clip, "create_model", create)
    before = list(logging.getLogger().handlers)
    with pytest.warns(Notice) as said:
        load_clip("ViT-B-32-quickgelu/openai", device="cpu")
    assert [str(each.message) for each in said] == [
        "ViT-B-32-quickgelu/openai: No pretrained weights loaded for model 'x'. Model initialized randomly.",
        "ViT-B-32-quickgelu/openai: These pretrained weights were trained with something else.",
    ]
    assert logging.getLogger().handlers == before


def test_a_failure_says_itself_and_no_more(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="cut short"), warnings.catch_warnings(), heeded("x"):
        warnings.simplefilter("error")
        logging.error("Failed to download weights")
        raise ValueError("cut short")
    assert capfd.readouterr() == ("", "")


def test_the_embedded_model_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip("tiny", device="cpu")


def test_without_a_network_nobody_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's library would try six times with growing pauses; asked for its cache alone it ends at once."""
    tried: list[str] = []
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")

    def no_such_host(host: str, *_: Any, **__: Any) -> Any:
        tried.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with without_waiting():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    tried.clear()
    with pytest.raises(MmrlError, match=OFFLINE):
        load_clip("ViT-B-16-quickgelu/openai", device="cpu")
    assert len(tried) == 1


@pytest.mark.parametrize(("status", "behind"), [(200, False), (404, False), (200, True), (403, True)])
def test_whoever_answers_is_asked(monkeypatch: pytest.MonkeyPatch, status: int, behind: bool) -> None:
    """The hub, or the proxy in front of it, be it with an error."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid" if behind else here)
        monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": here} if behind else {})
        with without_waiting() as asked:
            assert asked and not constants.HF_HUB_OFFLINE


def test_a_hub_that_refuses_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for endpoint, places in ((address, {}), ("http://hub.invalid", {"http": address})):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr("urllib.request.getproxies", lambda places=places: places)
        with without_waiting() as asked:
            assert not asked and constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE


def test_auto_is_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked_device("auto") == best_device() == checked_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert checked_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert best_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device() == torch.device("cuda")
