"""Measurements of speed and memory: `python -m benchmarks.train_step`, `.inference`, `.text_memory`, `.startup`; see README.md."""
