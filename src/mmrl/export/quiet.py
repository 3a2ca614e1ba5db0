"""Exporters that keep to themselves what they think on the way."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress, the graphs and the warnings of torch's exporters, which tell their authors something.

    What they print is left alone in a thread: the streams are the whole process's, and others may write to them meanwhile.
    """
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.fx", "torch.export", "onnxscript", "onnx_ir")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), ExitStack() as streams:
            if threading.current_thread() is threading.main_thread():
                streams.enter_context(redirect_stdout(StringIO()))
                streams.enter_context(redirect_stderr(StringIO()))
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
