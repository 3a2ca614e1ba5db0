"""What is in an exported folder: `manifest.json`, which names every other file that a runtime reads, with its size and SHA-256.

The manifest is plain JSON, so that programs in other languages can read it; docs/export.md describes its fields.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmrl.data.central import RESAMPLING
from mmrl.errors import MmrlError, UsageError
from mmrl.files import near_path, read_json, user_path
from mmrl.names import check_names
from mmrl.templates import Template, check_template, template_list

FORMAT = 1
MANIFEST = "manifest.json"
CLASSES = "classes.npy"
VOCABULARY = "vocabulary.txt.gz"

PIXELS = "pixels"
CLASS_FEATURES, REPRESENTATION_FEATURES, LOGITS = "class_features", "representation_features", "logits"
TEXT_FEATURES = "features"

FULL, TRAINED = "full", "trained"  # kinds: any class, or those that were trained alone
OUTPUTS = {  # of the image program, by kind
    FULL: ((CLASS_FEATURES,), (CLASS_FEATURES, REPRESENTATION_FEATURES)),
    TRAINED: ((CLASS_FEATURES, LOGITS),),
}

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_BLOCK = 2**20


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest has them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


class Preprocessing(NamedTuple):
    """From a picture to pixels: side in pixels, resampling, mean and standard deviation of values in [0, 1]."""

    size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class PromptInput(NamedTuple):
    """An input of the text program: what it is called, and the templates of its prompts."""

    name: str
    templates: tuple[str, ...]
    underscores: bool


@dataclass(frozen=True)
class TextFile:
    """The text program."""

    file: str
    output: str
    vocabulary: str
    context_length: int
    inputs: tuple[PromptInput, ...]


@dataclass(frozen=True)
class Manifest:
    """What a runtime needs of `manifest.json`; docs/export.md says what the fields mean."""

    folder: Path
    version: str
    kind: str
    method: str
    title: str
    backbone: str
    class_names: tuple[str, ...]
    template: Template
    embed_dim: int
    logit_scale: float
    one_scale: bool
    rule: Mapping[str, Any] | None
    subsets: bool
    any_spelling: bool
    preprocess: Preprocessing
    image: str
    outputs: tuple[str, ...]
    classes: str | None
    text: TextFile | None
    no_text: str
    calibration: Mapping[str, Any] | None
    precision: str

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """The manifest of an exported folder, whose files are all there and as they were written.

        Raises:
            UsageError: no such folder, or no export in it.
            MmrlError: a file is missing, edited or cut, or the export is of a later format.
        """
        place = user_path(folder)
        path = place / MANIFEST
        if not path.is_file():
            what = "has no export: it lacks" if place.is_dir() else "is no folder with an export: there is no"
            raise UsageError(f"{place} {what} {MANIFEST}.{near_path(place)} Give the folder that `mmrl export --out` wrote.")
        content = read_json(path, what="manifest of an export")
        written = content.get("format") if isinstance(content, dict) else None
        if isinstance(written, int) and written > FORMAT:
            writer = f"mmrl {content.get('version')}, format {written}; this one reads format {FORMAT}"
            raise MmrlError(f"the export in {place} was written by a later version ({writer}): upgrade mmrl.")
        try:
            found = _manifest(place, content)
            files = {_file_name(name): (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
            named = [found.image, found.classes, *([found.text.file, found.text.vocabulary] if found.text else [])]
            if left := [name for name in named if name is not None and name not in files]:
                raise ValueError(f"it names no hash of {left[0]}")
            if found.outputs not in OUTPUTS[found.kind]:
                raise ValueError(f"an image program of kind '{found.kind}' does not put out {', '.join(found.outputs) or 'nothing'}")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise MmrlError(f"{path} is damaged: {said}. Export again.") from error
        for name, (size, digest) in files.items():
            _require_whole(place / name, size, digest)
        if not found.image.endswith(".onnx"):
            raise UsageError(f"{place} is an export for another program ({found.image}); what runs here is one `--to onnx`.")
        return found


def _manifest(folder: Path, content: Mapping[str, Any]) -> Manifest:
    image, text, classes, shown = content["image"], content["text"], content["classes"], content["preprocess"]
    names = tuple(_text(name) for name in content["class_names"])
    if names:
        check_names(names)
    if content["kind"] not in (FULL, TRAINED) or (content["kind"] == TRAINED and not names):
        raise ValueError("its kind is not known, or it has no classes")
    mean, std = (tuple(_number(each) for each in shown[name]) for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or shown["interpolation"] not in RESAMPLING:
        raise ValueError("its preprocessing is none")
    return Manifest(
        folder=folder, version=_text(content["version"]), kind=content["kind"], method=_text(content["method"]),
        title=_text(content["title"]), backbone=_text(content["backbone"]), class_names=names,
        template=check_template([_text(each) for each in content["template"]]), embed_dim=_count(content["embed_dim"]),
        logit_scale=_number(content["logit_scale"]), one_scale=content["one_scale"] is True, rule=content["rule"],
        subsets=content["subsets"] is True, any_spelling=content["any_spelling"] is True,
        preprocess=Preprocessing(_count(shown["size"]), shown["interpolation"], (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])),
        image=_file_name(image["file"]), outputs=tuple(_text(each) for each in image["outputs"]),
        classes=None if classes is None else _file_name(classes["file"]), text=None if text is None else _text_part(text),
        no_text=_text(content["no_text"]), calibration=content["calibration"], precision=_text(content["precision"]),
    )  # fmt: skip


def _text_part(text: Mapping[str, Any]) -> TextFile:
    inputs = tuple(PromptInput(_text(each["name"]), _templates(each["templates"]), each["underscores"] is True) for each in text["inputs"])
    return TextFile(_file_name(text["file"]), _text(text["output"]), _file_name(text["vocabulary"]), _count(text["context_length"]), inputs)


def _templates(value: Any) -> tuple[str, ...]:
    return template_list(check_template([_text(each) for each in value]))


def _file_name(name: Any) -> str:
    """A file of the folder itself: no path leads out of it."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or name == MANIFEST:
        raise ValueError(f"{name!r} is no name of a file of an export")
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 2**20:
        raise ValueError(f"{value!r} is no count")
    return value


def _require_whole(path: Path, size: Any, digest: Any) -> None:
    if not path.is_file() or path.is_symlink():
        raise MmrlError(f"{path.parent} lacks {path.name}, or it is no regular file. Copy the export whole again.")
    if file_entry(path) != {"bytes": size, "sha256": digest}:
        raise MmrlError(f"{path} is not the file that {MANIFEST} describes: it was edited, cut or exchanged. Copy the export again.")
