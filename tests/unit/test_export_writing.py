"""What an export asks before it starts, and how its folder comes to be: whole or as it was, and in no one else's place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mmrl import MmrlError, UsageError, export_adapter, methods
from mmrl.classifier.predictor import Classifier
from mmrl.cli.main import app
from mmrl.clip import Clip
from mmrl.export import TARGETS, ExportOptions, compare
from mmrl.export.folder import whole_folder, write_manifest
from mmrl.runtime.manifest import FORMAT, FULL, MANIFEST
from tests.unit.colours import clip_on_one_thread
from tests.unit.test_export import MIXED, calibrated, pictures

clip = pytest.fixture(clip_on_one_thread, scope="module")


@pytest.fixture(scope="module")
def classifier(clip: Clip) -> Classifier:
    return calibrated(clip)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder that looks like an export."""
    folder = tmp_path / "written"
    folder.mkdir()
    (folder / "image.onnx").touch()
    write_manifest(folder, {"format": FORMAT, "kind": FULL})
    return folder


def test_nothing_else_is_replaced(classifier: Classifier, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(folder: Path | str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError) as caught:
            export_adapter(classifier, folder)
        assert sorted(tmp_path.rglob("*")) == before
        return str(caught.value)

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo.jpg").write_bytes(b"mine")
    assert "no export" in told(mine) and "is a file" in told(mine / "photo.jpg")
    for content in ('{"name": "an app", "icons": []}', "{", "[]", '{"format": 1, "files": {}}'):  # web apps have a file of that name, too
        (mine / MANIFEST).write_text(content)
        assert "no export" in told(mine)
    for name in ("index.html", "page", "ort"):
        (written / name).mkdir()
    (written / ".git").mkdir()
    assert "holds something besides an export: .git." in told(written)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "the folder that you are in" in told(".") and "the folder that you are in" in told("..")


def test_a_folder_is_whole_or_as_it_was(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in written.iterdir())

    def as_before() -> bool:
        return sorted(path.name for path in written.iterdir()) == before and list(written.parent.iterdir()) == [written]

    with pytest.raises(MmrlError, match="differs"), whole_folder(written) as (_, temporary):
        (temporary / "half").write_bytes(b"x")
        raise MmrlError("it differs")
    assert as_before()
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == written and self.name != "old":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", interrupted)
        with whole_folder(written):
            pass
    assert as_before()
    (written / "index.html").touch()
    for name in ("page", "ort"):
        (written / name).mkdir()
    with whole_folder(written) as (_, temporary):
        write_manifest(temporary, {"format": FORMAT})
    assert [path.name for path in written.iterdir()] == [MANIFEST] and list(written.parent.iterdir()) == [written]


def test_what_killed_exports_left_is_taken_away(tmp_path: Path) -> None:
    names = [".out.abcd0123.partial", ".out.abcd4567.partial", ".out.mine.partial", ".other.abcd0123.partial"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.onnx").touch()
        if name != names[1]:  # which is being written
            os.utime(tmp_path / name, (0, 0))
    with whole_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "out"])


def test_a_program_that_differs_is_told() -> None:
    module = torch.nn.Linear(3, 2)

    def wrong(arrays: object) -> list[np.ndarray]:
        found = module(torch.from_numpy(arrays[0])).detach().numpy()  # type: ignore[index]
        return [found + 2 * compare.TOLERANCE]

    with pytest.raises(MmrlError, match="differs from torch"):
        compare.largest_difference(module, wrong, lambda size: [torch.zeros(size, 3)], what="it")
    with pytest.raises(MmrlError, match="does not run on a batch of 1"):
        compare.largest_difference(module, lambda arrays: 1 / 0, lambda size: [torch.zeros(size, 3)], what="it")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "onyx"}, "Did you mean 'onnx'"),
        ({"precision": "int4"}, "int8"),
        ({"precision": "int8"}, "--check"),
        ({"opset": 17}, "18 to 22"),
        ({"max_loss": -1}, "0 to 100"),
        ({"opest": 18}, "Did you mean 'opset'"),
        ({"opset": "18"}, "opset is '18'; it must be 18 to 22"),
        ({"max_loss": "1"}, "an option of an export is of a wrong type: .*Given: max_loss"),
        ({"check": "photos"}, "for int8"),
        ({"max_loss": 2}, "for int8"),
        ({"ort": "dist"}, "ort .* is for an export to web, and this one is to onnx"),
        ({"opset": 20, "to": "pt2"}, "an export to pt2 has none"),
        ({"backbone": "tiny"}, "a Classifier has one already"),
    ],
)
def test_bad_options(classifier: Classifier, tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        export_adapter(classifier, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_command(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ExportOptions] = []

    def target(given: object, folder: Path, options: ExportOptions) -> tuple[float, list[str]]:
        asked.append(options)
        write_manifest(folder, {"format": FORMAT})
        return 0.0, ["a note"]

    monkeypatch.setitem(TARGETS, "onnx", target)
    monkeypatch.setattr("mmrl.api.from_pretrained", lambda *given, **options: classifier)
    words = ["export", "runs/x", "--out", str(tmp_path / "out"), "--opset", "20", "--no-text", "--precision", "int8", "--check", "photos"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "written to" in done.output, done.output
    assert asked == [ExportOptions("int8", "photos", opset=20, text=False)]
    monkeypatch.setattr("mmrl.api.zero_shot", lambda *given, **options: classifier)
    done = CliRunner().invoke(app, ["export", "zero-shot", "--out", str(tmp_path / "other"), "--backbone", "tiny"])
    assert done.exit_code == 0, done.output


def test_a_copy_is_traced(classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing puts other tensors into modules, and other threads may ask the classifier, or others on its backbone, meanwhile. It is traced
    on the processor, whatever the classifier is on."""
    moved: list[methods.Method] = []
    cpu = methods.Method.cpu
    monkeypatch.setattr(methods.Method, "cpu", lambda method: moved.append(method) or cpu(method))

    def target(given: Classifier, folder: Path, options: ExportOptions) -> tuple[float, list[str]]:
        own, shared = (
            {id(value) for module in (each.method, each.method.clip.model) for value in (*module.modules(), *module.parameters())}
            for each in (given, classifier)
        )
        assert own and not own & shared and moved == [given.method]
        np.testing.assert_array_equal(given.predict_proba(pictures(), MIXED), classifier.predict_proba(pictures(), MIXED))
        assert (given.trained, given.trust) == (classifier.trained, classifier.trust)
        write_manifest(folder, {"format": FORMAT})
        return 0.0, []

    monkeypatch.setitem(TARGETS, "onnx", target)
    export_adapter(classifier, tmp_path / "out")
