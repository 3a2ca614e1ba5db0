"""A classifier as plain data, so that it can be pickled: sent to other processes, copied, kept by other libraries.

What is in it: the adapter as files (tensors, configuration, model card), the record and the images of its training, and the backbone's
name; the backbone's own weights only where no name gives them back. A classifier that is made again shares the backbone of any other in
the process that has the same weights on the same device.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.clip import Clip, load_clip
from mmrl.clip.device import checked_device
from mmrl.engine import load_adapter, save_adapter
from mmrl.errors import MmrlError, UsageError

if TYPE_CHECKING:
    from mmrl.classifier.predictor import Classifier

_LIVING: weakref.WeakValueDictionary[tuple[str, str], Clip] = weakref.WeakValueDictionary()  # by identity and device
_LOCK = threading.Lock()


def packed(classifier: Classifier) -> dict[str, Any]:
    """What `unpacked` makes the classifier of."""
    method, clip = classifier.method, classifier.method.clip
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(
            folder, method, classes=classifier.trained, template=classifier.template, dataset=classifier.trained_on, trust=classifier.trust
        )
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    with _LOCK:
        _LIVING[clip.identity, str(clip.device)] = clip
    return {
        "files": files,
        "backbone": {"identity": clip.identity, "name": clip.loadable, "whole": None if clip.loadable else clip},
        "device": str(clip.device),
        "more": classifier.about(),
    }


def unpacked(content: dict[str, Any]) -> Classifier:
    """The classifier of such data, on the device that it was on, or the best there is where that is missing.

    Raises:
        MmrlError: the backbone cannot be loaded, or is not the one that it was.
    """
    from mmrl.classifier.predictor import Classifier

    try:
        device = checked_device(content["device"])
    except UsageError:
        device = checked_device()
    clip = _backbone(content["backbone"], str(device))
    with tempfile.TemporaryDirectory() as folder:
        for name, file in content["files"].items():
            (Path(folder) / name).write_bytes(file)
        method, config = load_adapter(folder, clip, device=device)
    return Classifier(
        method, trained=config.class_names, template=config.template, trained_on=config.dataset, trust=config.trust, **content["more"]
    )


def _backbone(known: dict[str, Any], device: str) -> Clip:
    with _LOCK:
        key = known["identity"], device
        clip = _LIVING.get(key)
        if clip is None:
            clip = known["whole"].to(device) if known["whole"] is not None else load_clip(known["name"], device=device)
            if clip.identity != known["identity"]:
                raise MmrlError(f"the backbone '{known['name']}' has other weights here than where this classifier was pickled.")
            _LIVING[key] = clip
        return clip
