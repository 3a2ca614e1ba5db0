"""Notebooks as pages: each is run, from its first cell to its last, and becomes Markdown with what it printed and drew."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

SECONDS = 900  # for one cell
NOTICE = re.compile(r"(?m)^\S+: Notice: (.+)$")  # without the file and line that Python puts around it
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def executed(path: Path) -> Any:
    """The notebook with its outputs, run in an empty folder; as it is with NOTEBOOKS=0 in the environment, to look at other pages.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    if os.environ.get("NOTEBOOKS") == "0":
        return book
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        here = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]), "MMRL_CACHE": f"{folder}/.cache"}
        limits = {"timeout": SECONDS, "startup_timeout": SECONDS}
        client = NotebookClient(book, kernel_name="python3", resources={"metadata": {"path": folder}}, **limits)
        client.execute(env=os.environ | here)  # `mmrl` in a cell is the one beside this Python
    return book


def _overwritten(text: str) -> str:
    """What a terminal shows of text with colours and carriage returns."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2].rstrip() for line in COLOURS.sub("", text).split("\n")).strip("\n")


def _shown(output: Any) -> str:
    """One output as Markdown; '' for one that is empty."""
    if output.output_type == "stream":
        text = _overwritten("".join(f"note: {text}\n" for text in NOTICE.findall(output.text)) if output.name == "stderr" else output.text)
        return f"```text\n{text}\n```" if text else ""
    data = output.data
    if "text/markdown" in data:
        return re.sub(r"(?m)^#+ (.+)", r"**\1**", data["text/markdown"])
    if "image/png" in data:
        return f'<img alt="figure" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    if "text/html" in data:
        html = re.sub(r"(?s)<style scoped>.*?</style>| border=\"1\"|\n\s*(?=\n)", "", data["text/html"])
        return f'<div class="shown">\n{html.strip()}\n</div>'
    return f"```text\n{_overwritten(data['text/plain'])}\n```"


def _joined(outputs: list[Any]) -> list[Any]:
    """Streams in one piece each, though a kernel sends them in several."""
    out: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and out and out[-1].output_type == "stream" and out[-1].name == output.name:
            out[-1] = type(output)({**out[-1], "text": out[-1].text + output.text})
        else:
            out.append(output)
    return out


def page(path: Path) -> str:
    """The notebook, run, as a page of the site."""
    parts = []
    for cell in executed(path).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        shell = cell.source.startswith("!")
        parts.append(f"```{'bash' if shell else 'python'}\n{cell.source.removeprefix('!')}\n```")
        parts += [shown for output in _joined(cell.outputs) if (shown := _shown(output))]
    first, *rest = parts
    head, _, text = first.partition("\n")
    return "\n\n".join([head, f"[Download this notebook]({path.name}){{ download }}", text.strip(), *rest]) + "\n"
