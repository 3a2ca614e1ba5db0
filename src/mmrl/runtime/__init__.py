"""Classifiers that were exported to ONNX, run with NumPy, Pillow and ONNX Runtime alone: no torch, and nothing else that the package needs.

    from mmrl import runtime

    animals = runtime.load("animals-onnx")
    animals.predict("new.jpg", classes=["red panda", "badger", "wolverine"])
"""

from mmrl.runtime.classifier import ExportedClassifier, load

__all__ = ["ExportedClassifier", "load"]
