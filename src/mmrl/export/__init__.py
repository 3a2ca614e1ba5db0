"""Exported classifiers: folders that ONNX Runtime, a browser or `torch.export.load` run without this package's methods."""

from mmrl.export.adapter import Exported, ExportOptions, export_adapter
from mmrl.export.targets import TARGETS

__all__ = ["TARGETS", "ExportOptions", "Exported", "export_adapter"]
