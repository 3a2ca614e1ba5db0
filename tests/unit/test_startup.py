"""What is imported on the way to a prediction, each time in a fresh interpreter; times are measured by benchmarks/startup.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl import methods
from mmrl.clip import load_clip
from mmrl.clip.deferred import deferring
from mmrl.engine import save_adapter
from mmrl.engine.shapes import shapes_of
from mmrl.methods import Task, build

ROOT = Path(__file__).parents[2]
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
NOT_TO_CLASSIFY = COMPILER | {"timm", "scipy", "sklearn", "pandas", "matplotlib", "jinja2", "tensorboard", "ray", "rich.progress"}
NOT_TO_CLASSIFY |= {"torchvision.models", "torchvision.datasets", "open_clip.push_to_hf_hub", "huggingface_hub.hf_api"}
TASK = Task(("badger", "red panda"), "a photo of a {}.", 4)


def fresh(code: str) -> str:
    """What `code` prints last in a fresh interpreter."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("method", ["mmrl", "mmrlpp", "clip-lora"])
def test_a_prediction_imports_only_what_it_needs(method: str, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", build(method, load_clip("tiny"), task=TASK), classes=TASK.names, template=TASK.template)
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.png")
    words = ["mmrl", "predict", str(tmp_path / "adapter"), str(tmp_path / "photo.png"), "--json"]
    code = f"import json, sys\nsys.argv = {words}\nfrom mmrl.cli.main import run\ntry:\n    run()\nexcept SystemExit as left:\n"
    loaded = set(json.loads(fresh(f"{code}    assert not left.code, left\nprint(json.dumps(sorted(sys.modules)))")))
    assert {"torch", "open_clip.timm_model", "torchvision.ops.roi_align"} <= loaded
    assert not loaded & NOT_TO_CLASSIFY


def test_what_is_deferred_is_there_when_it_is_called() -> None:
    code = """
import sys
from mmrl.clip import load_clip
load_clip("tiny")
assert not {"timm", "torch._dynamo", "torchvision.models", "huggingface_hub.hf_api", "open_clip.push_to_hf_hub"} & set(sys.modules)
import open_clip, torch, torchvision
model = open_clip.timm_model.TimmModel("resnet18", 8, image_size=64, pool="rot_attn", proj="")
assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
assert open_clip.timm_model.timm.__name__ == "timm" and "timm.layers" in sys.modules
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).eq(1).all()
from torchvision.ops import roi_align as _
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") in (True, False)
assert torchvision.models.resnet18().fc.out_features == 1000 and torchvision.datasets.FakeData(1)[0][1] in range(10)
from torchvision.models import resnet18
assert torchvision.models.resnet18 is resnet18
try:
    open_clip.pretrained.hf_hub_download("no name at all", "x")
except ValueError as error:
    assert "no name at all" in str(error)
import huggingface_hub
assert huggingface_hub.hf_hub_download.__module__ == "huggingface_hub.file_download"
for _ in range(2):
    try:
        open_clip.push_to_hf_hub()
    except TypeError as error:
        assert "push_to_hf_hub() missing" in str(error)
assert sys.modules["open_clip.push_to_hf_hub"].push_to_hf_hub is open_clip.push_to_hf_hub
import timm, torch._dynamo
assert timm.create_model.__module__.startswith("timm") and torch._dynamo.is_compiling() is False
print("well")
"""
    assert fresh(code) == "well"


def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "far").mkdir()
    (folder / "far" / "__init__.py").write_text("def double(x):\n    return 2 * x\n\nOTHER = 5\n")
    (folder / "far" / "inner.py").write_text("from far import OTHER\n\ndef plus(x, *, y=0):\n    return x + y + OTHER\n")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("far", "far.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_deferred_modules_are_imported_by_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch)
    with deferring({"far": ("double",), "far.inner": ("plus",)}):
        import far
        from far.inner import plus
    assert not {"far", "far.inner"} & set(sys.modules)
    assert plus(1, y=2) == 8
    assert far.double(4) == 8 and far.OTHER == 5
    assert sys.modules["far"].__file__ and sys.modules["far.inner"].plus is not plus


def test_other_names_of_deferred_modules_are_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch)
    with deferring({"far": ("double",), "far.inner": ("plus",)}):
        from far import OTHER
        from far.inner import plus
    assert OTHER == 5 and plus(1) == 6
    assert plus is sys.modules["far.inner"].plus  # it was there once the package was


def test_what_is_imported_or_missing_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch)
    import far

    with deferring({"far": ("double",), "far.inner": ("plus",), "not_installed_anywhere": ("call",)}):
        assert sys.modules["far"] is far and "far.inner" not in sys.modules
        with pytest.raises(ImportError):
            import not_installed_anywhere  # noqa: F401


@pytest.mark.parametrize("name", sorted(methods.registered()))
def test_shapes_without_values_are_those_of_the_method(name: str) -> None:
    clip, cls = load_clip("tiny"), methods.get(name)
    found = shapes_of(cls, clip, cls.Options(), TASK)
    made = {key: tuple(value.shape) for key, value in build(name, clip, task=TASK).state_dict().items()}
    assert found == made


def test_shapes_import_no_compiler() -> None:
    code = """
import sys
from mmrl import methods
from mmrl.clip import load_clip
from mmrl.engine.shapes import shapes_of
clip, task = load_clip("tiny"), methods.Task(("badger", "red panda"), "a photo of a {}.", 4)
print([name for name in methods.names() if shapes_of(methods.get(name), clip, methods.get(name).Options(), task) is None
       or {"torch._dynamo", "sympy", "scipy"} & set(sys.modules)])
"""
    assert fresh(code) == "[]"


def test_shapes_take_no_random_numbers() -> None:
    clip, before = load_clip("tiny"), torch.random.get_rng_state()
    shapes_of(methods.get("mmrl"), clip, methods.get("mmrl").Options(), TASK)
    assert torch.equal(before, torch.random.get_rng_state())
