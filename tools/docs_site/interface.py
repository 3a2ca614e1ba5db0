"""The pages of the Python interface, for mkdocstrings: one of `mmrl` itself and one of each package that users import from."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

PAGES = {
    "mmrl": ("mmrl", "The names of `import mmrl`. How they are used: [the Python object](../python.md)."),
    "mmrl.trust": (
        "mmrl.trust",
        "Calibration, rejection, prediction sets, mixed lists: functions of arrays. How a classifier uses them: [trust](../trust.md).",
    ),
    "mmrl.methods": ("mmrl.methods", "What a method is made of. To write one: [add a method](../add_method.md), [plugins](../plugins.md)."),
    "mmrl.data": ("mmrl.data", "Data sets, draws and batches: [data](../datasets.md)."),
    "mmrl.export": ("mmrl.export", "What `mmrl.export_adapter` takes and gives: [export](../export.md)."),
    "mmrl.runtime": ("mmrl.runtime", "Exported classifiers without torch: [export](../export.md)."),
}
BEHIND_GUIDES = "---\nsearch:\n  boost: 0.5\n---\n"  # in what a search finds


def _path(module: Any, name: str) -> str:
    """Where a public name is defined, for mkdocstrings, which reads sources and follows no imports on first use."""
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{module.__dict__.get('_HOME', {}).get(name, module.__name__)}.{name}"


def pages() -> dict[str, str]:
    """`api/NAME.md` -> its Markdown."""
    out = {}
    for name, (title, about) in PAGES.items():
        module = importlib.import_module(name)
        names = [each for each in module.__all__ if not each.startswith("__")]
        parts = [BEHIND_GUIDES, f"# {title}\n\n{about}\n", *(f"::: {_path(module, each)}\n" for each in names)]
        out[f"api/{name.replace('.', '_')}.md"] = "\n".join(parts)
    return out
