"""Classifiers that were exported to ONNX, run with NumPy, Pillow and ONNX Runtime alone: no torch, and nothing else of the package."""
