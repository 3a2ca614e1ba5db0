"""What a classifier can be exported to, by name.

A target writes everything into the temporary folder that it is given, and returns the largest difference from torch and what the user
should know. `mmrl.export.adapter` looks after the folder itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmrl.classifier.predictor import Classifier
from mmrl.export.adapter import ExportOptions
from mmrl.export.onnx_folder import write_onnx
from mmrl.export.pt2 import write_pt2
from mmrl.export.web import write_web

Target = Callable[[Classifier, Path, ExportOptions], tuple[float, list[str]]]

TARGETS: dict[str, Target] = {"onnx": write_onnx, "pt2": write_pt2, "web": write_web}
