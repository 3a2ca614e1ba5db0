"""Exported classifiers answer as torch does, or are refused with one message; a damaged or hostile folder is refused, too."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmrl
from mmrl import MmrlError, UsageError, export_adapter, methods, runtime
from mmrl.classifier.predictor import Classifier
from mmrl.clip import Clip
from mmrl.export import ExportOptions, compare, quantised
from mmrl.export.folder import write_manifest
from mmrl.export.quantised import to_int8
from mmrl.export.quiet import quiet
from mmrl.runtime.manifest import FORMAT, MANIFEST
from mmrl.trust.state import Trust
from tests.unit.colours import NAMES, PROMPT, clip_on_one_thread, colours, fresh, read

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SAME = 1e-5  # largest difference of a probability, in float32 (docs/export.md)
MIXED = ("red", "a brown_thing", "blue", "pink")
clip = pytest.fixture(clip_on_one_thread, scope="module")


def pictures(count: int = 3) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (40 + 9 * at, 61, 3), dtype=np.uint8)) for at in range(count)]


def calibrated(clip: Clip) -> Classifier:
    method = fresh(clip)
    logits = np.random.default_rng(1).normal(0, 3, (40, len(NAMES)))
    trust = Trust.fit(logits, np.arange(40) % 4, classes=NAMES, template=PROMPT, scale=method.logit_scale)
    return Classifier(method, trained=NAMES, template=PROMPT, trust=trust)


@pytest.fixture(scope="module")
def classifier(clip: Clip) -> Classifier:
    return calibrated(clip)


@pytest.fixture(scope="module")
def folder(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = export_adapter(classifier, tmp_path_factory.mktemp("export") / "mmrl")
    assert 0 <= made.largest_difference < compare.TOLERANCE and not made.notes
    return made.folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> runtime.ExportedClassifier:
    return runtime.load(folder, threads=1)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("names", [None, NAMES[:2], MIXED, ("pink", "a brown_thing")])
@pytest.mark.parametrize("calibrated", [True, False])
def test_probabilities_are_torchs(classifier: Classifier, exported: runtime.ExportedClassifier, names, calibrated) -> None:
    wanted = classifier.predict_proba(pictures(), names, calibrated=calibrated)
    np.testing.assert_allclose(exported.predict_proba(pictures(), names, calibrated=calibrated), wanted, atol=SAME)


def test_answers_are_torchs(classifier: Classifier, exported: runtime.ExportedClassifier, tmp_path: Path) -> None:
    for at, each in enumerate(pictures(70)):  # more than a batch
        each.save(tmp_path / f"{at:02}.png")
    given = str(tmp_path)
    assert exported.predict(given) == classifier.predict(given)
    assert exported.predict(str(tmp_path / "00.png"), MIXED) == classifier.predict(str(tmp_path / "00.png"), MIXED)
    for own, other in zip(exported.rank(given, ",".join(MIXED), top=2), classifier.rank(given, MIXED, top=2), strict=True):
        assert [(each.name, each.trained) for each in own] == [(each.name, each.trained) for each in other]
    np.testing.assert_allclose(exported.embed(given), classifier.embed(given), atol=SAME)
    scores = classifier.known_scores(given, score="mcm")
    np.testing.assert_allclose(exported.known_scores(given, score="mcm"), scores, atol=SAME)
    between = float(np.sort(scores)[34:36].mean())
    answers = exported.predict(given, threshold=between, score="mcm")
    assert answers == classifier.predict(given, threshold=between, score="mcm") and answers.count("unknown") == 35


def test_pixels_are_the_same_to_the_bit(classifier: Classifier, exported: runtime.ExportedClassifier) -> None:
    sizes = [(32, 32), (33, 90), (200, 31), (1, 7), (640, 480)]
    images = [Image.fromarray(np.random.default_rng(w).integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    wanted = torch.stack([classifier.preprocess.test(each) for each in images])
    np.testing.assert_array_equal(exported.pixels(images), wanted.numpy())


@pytest.mark.parametrize(
    ("images", "options"),
    [
        ([], {"classes": ["a " * 40]}),
        ([], {"classes": ["red", "RED "]}),
        ([], {"classes": ["red", " "]}),
        ("nowhere.png", {}),
        ([], {"reject": True, "classes": ["unknown", "red"]}),
        ([], {"recall": 0.9, "threshold": 1.0}),
        ([], {"threshold": 1.0, "score": "mmc"}),
    ],
)
def test_the_same_messages(classifier: Classifier, exported: runtime.ExportedClassifier, images, options) -> None:
    said = []
    for each in (classifier, exported):
        with pytest.raises(UsageError) as caught:
            each.predict(images, **options)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_all_without_torch(folder: Path, classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pictures(1)[0].save(path)
    gone = "torch torchvision pydantic pydantic_core open_clip safetensors ftfy regex scipy sklearn typer rich huggingface_hub timm jinja2"
    code = f"import sys\nfor name in {gone.split()!r}: sys.modules[name] = None\nsys.argv = ['x', *sys.argv[1:]]\n"
    code += "import runpy\nrunpy.run_module('mmrl.runtime', run_name='__main__')"
    words = [str(folder), str(path), "--classes", ",".join(MIXED), "--json", "--top", "4"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-c", code, *words]
        return subprocess.run(given, capture_output=True, text=True, timeout=120, check=False, env=environment)

    done = run(*words)
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each["probability"] for each in json.loads(done.stdout)["predictions"]}
    np.testing.assert_allclose([found[name] for name in MIXED], classifier.predict_proba(str(path), MIXED)[0], atol=SAME)
    done = run(str(tmp_path), str(path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and MANIFEST in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_that_cannot_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(1)[0].save(tmp_path / "a.png")
    words = [str(folder), str(tmp_path / "a.png"), "--classes", "pïnk"]
    monkeypatch.setattr(sys, "argv", ["mmrl.runtime", *words])
    with open("/dev/full", "w") as full, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stdout", full)
        runpy.run_module("mmrl.runtime", run_name="__main__")
    assert ended.value.code == 1 and capsys.readouterr().err == "error: output: No space left on device.\n"
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    runpy.run_module("mmrl.runtime", run_name="__main__")
    assert terminal.buffer.getvalue().endswith(rb"a.png: p\u00efnk 100.0%" + os.linesep.encode())  # type: ignore[attr-defined]


# ---- folders that are not as they were written ----


def changed(copied: Path, **fields: object) -> None:
    path = copied / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(copied: Path) -> str:
    with pytest.raises(MmrlError) as caught:
        runtime.load(copied)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_folders_are_refused(copied: Path) -> None:
    (copied / "classes.npy").write_bytes((copied / "classes.npy").read_bytes()[:-1] + b"\1")
    assert "edited, cut or exchanged" in refused(copied)
    (copied / "classes.npy").unlink()
    assert "lacks classes.npy" in refused(copied)
    (copied / "classes.npy").symlink_to("/etc/hostname")
    assert "lacks classes.npy" in refused(copied)
    (copied / MANIFEST).write_text("{")
    assert "damaged" in refused(copied)
    (copied / MANIFEST).unlink()
    assert "has no export" in refused(copied)


@pytest.mark.parametrize("name", ["../classes.npy", "/etc/passwd", "a/b.npy", "..", ".hidden", "", "manifest.json", 3, None])
def test_file_names_lead_nowhere_else(copied: Path, name: object) -> None:
    changed(copied, image={"file": name, "input": "pixels", "outputs": ["class_features"]})
    assert "is no name of a file" in refused(copied)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": FORMAT + 1}, "later version"),
        ({"kind": "half"}, "kind"),
        ({"embed_dim": "many"}, "no count"),
        ({"class_names": ["red"]}, "not its manifest's"),
        ({"template": ["no place"]}, "exactly one {}"),
        ({"class_names": ["red", "Red"]}, "twice"),
        ({"rule": {"name": "secret"}}, "not known here"),
        ({"rule": {"name": "fused", "alpha": 0.5, "fusion": "x"}}, "damaged"),
        ({"calibration": {"scores": {}}}, "calibration"),
        ({"calibration.temperature": 10**400}, "calibration"),
        ({"files": {}}, "names no hash"),
        ({"text": {}}, "missing"),
        ({"preprocess": {"size": 32, "interpolation": "x", "mean": [0, 0, 0], "std": [1, 1, 1]}}, "preprocessing"),
        ({"image": {"file": "text.onnx.data", "outputs": []}}, "names no hash"),
        ({"logit_scale": 10**400}, "too large"),
        ({"rule": {"name": "fused", "alpha": 10**400, "fusion": "logits"}}, "damaged"),
        ({"kind": "trained"}, "of kind 'trained' does not put out class_features, representation_features"),
        ({"image.outputs": []}, "does not put out nothing"),
        ({"embed_dim": 8}, "'class_features' has shape"),
        ({"image.file": "text.onnx"}, "'tokens' has shape [1, 'classes', 16], and not none"),
        ({"preprocess.size": 33}, "'pixels' has shape ['batch', 3, 32, 32], and not (None, 3, 33, 33)"),
        ({"text.output": "x"}, "'x' has shape none"),
        ({"text.context_length": 70}, "'tokens' has shape"),
        ({"text.inputs": []}, "'tokens' has shape"),
        ({"text.inputs": [{"name": "other", "templates": ["a {}"], "underscores": False}]}, "'tokens' has shape"),
        ({"text.inputs": [{"name": "tokens", "templates": ["a {}", "the {}"], "underscores": False}]}, "'tokens' has shape"),
    ],
)
def test_edited_manifests_are_refused(copied: Path, fields: dict[str, object], said: str) -> None:
    content = json.loads((copied / MANIFEST).read_text())
    for name, value in fields.items():
        part, _, inner = name.partition(".")
        content[part] = {**content[part], inner: value} if inner else value
    changed(copied, **content)
    assert said in refused(copied)


def test_a_program_that_is_none_is_refused(copied: Path) -> None:
    (copied / "image.onnx").write_bytes(b"nothing")
    content = json.loads((copied / MANIFEST).read_text())
    write_manifest(copied, content)
    assert "cannot open" in refused(copied)


# ---- a method that knows its classes alone, and int8 ----


@pytest.fixture(scope="module")
def probe(clip: Clip) -> Classifier:
    return mmrl.fit(colours(), method="linear-probe", backbone=clip, shots=4, progress=False)


@pytest.fixture(scope="module")
def probe_folder(probe: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = export_adapter(probe, tmp_path_factory.mktemp("export") / "probe")
    assert "new classes cannot be named" in made.notes[0]
    return made.folder


def test_trained_classes_only(probe: Classifier, probe_folder: Path) -> None:
    exported = runtime.load(probe_folder)
    for names in (None, NAMES[::-1], NAMES[1:3]):
        np.testing.assert_allclose(exported.predict_proba(pictures(), names), probe.predict_proba(pictures(), names), atol=SAME)
    np.testing.assert_allclose(exported.embed(pictures()), probe.embed(pictures()), atol=SAME)
    with pytest.raises(UsageError, match="'pink' is a new class"):
        exported.predict(pictures(), ["red", "pink"])


def test_another_spelling_has_another_prompt(probe: Classifier, probe_folder: Path, copied: Path) -> None:
    respelled = [name.upper() for name in NAMES]
    wanted = probe.predict_proba(pictures(), respelled)  # a linear probe reads no prompts
    np.testing.assert_allclose(runtime.load(probe_folder).predict_proba(pictures(), respelled), wanted, atol=SAME)
    changed(copied, text=None, no_text="it has no text tower")
    with pytest.raises(UsageError, match="'RED' is the trained class 'red' in another spelling.*it has no text tower. Write 'red'."):
        runtime.load(copied).predict(pictures(), ["blue", "RED"])


@pytest.mark.parametrize("harm", [False, True])
def test_int8_is_allowed_by_images_alone(
    probe: Classifier, probe_folder: Path, tmp_path: Path, harm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(probe_folder, tmp_path / "copy"))
    content = json.loads((place / MANIFEST).read_text())
    content.pop("files")
    options = ExportOptions("int8", colours(), max_loss=5)
    if harm:
        monkeypatch.setattr(quantised, "quantise", spoiled)
        with pytest.raises(MmrlError, match="points less, so nothing was written"):
            to_int8(probe, place, options, content)
        return
    before = (place / "image.onnx").stat().st_size
    assert "of 32 images" in to_int8(probe, place, options, content)
    assert (place / "image.onnx").stat().st_size < before
    exported = runtime.load(place)
    assert exported.manifest.precision == "int8"
    images, labels = zip(*((read(item.key), NAMES[item.label]) for item in colours().test))
    found = json.loads((place / MANIFEST).read_text())["int8"]
    right = np.mean([own == label for own, label in zip(exported.predict(list(images)), labels, strict=True)])
    assert found["accuracy_int8"] == pytest.approx(right) and found["accuracy_float32"] == probe.evaluate(colours()).top1


def spoiled(path: Path) -> None:
    """Weights of the file in another order."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    for each in model.graph.initializer:
        values = numpy_helper.to_array(each)
        if values.dtype == np.float32 and values.size > 100:
            mixed = np.random.default_rng(0).permutation(values.ravel()).reshape(values.shape)
            each.CopyFrom(numpy_helper.from_array(mixed, each.name))
    onnx.save(model, str(path))


def test_a_program_for_torch(classifier: Classifier, tmp_path: Path) -> None:
    made = export_adapter(classifier, tmp_path / "out", to="pt2", text=False)
    module = torch.export.load(made.folder / "image.pt2").module()
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = classifier.method.image_features(pixels)
        for own, other in zip(module(pixels), wanted, strict=True):
            torch.testing.assert_close(own, other)
    with pytest.raises(UsageError, match="another program"):
        runtime.load(made.folder)
    with pytest.raises(UsageError, match="in float32"):
        export_adapter(classifier, tmp_path / "small", to="pt2", precision="int8", check="photos")


def test_what_cannot_be_traced_is_told(clip: Clip, tmp_path: Path) -> None:
    method = methods.build("coop", clip, {"n_ctx": 2, "class_token_position": "middle"}, seed=1)
    with pytest.raises(UsageError, match="text tower of method 'coop' cannot be exported.*--no-text"):
        export_adapter(Classifier(method, trained=NAMES, template=PROMPT), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_others_write_is_seen_while_one_exports() -> None:
    seen, now = list[Any](), sys.stderr

    def export() -> None:
        with quiet():
            seen.append(sys.stderr)

    thread = threading.Thread(target=export)
    thread.start()
    thread.join()
    export()
    assert seen[0] is now and seen[1] is not now and sys.stderr is now
