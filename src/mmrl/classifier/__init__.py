"""Inference with trained classifiers."""
