"""Checkpoints of others: named tensors, without running anything that the file asks for."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmrl.clip.archive import Archive, View, view_of
from mmrl.errors import MmrlError, first_line

DEEPEST = 4  # levels of dicts in which named tensors are looked for


class TensorFile(Mapping[str, Tensor]):
    """The named tensors under `state_dict` of a `torch.save` archive (or, without such an entry, at its top); each read when asked for.

    Those in a dict within have both names, with a dot. The file stays open as long as this lives.

    Attributes:
        notes: the numbers, texts and lists of them under `metadata`.

    Raises:
        MmrlError: the file is missing, damaged, or holds no named tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
                raise MmrlError(f"{path} is no regular file; give a checkpoint.")
            self._archive = Archive(path)
            content = self._archive.notes()
            self._views = _named_views(content)
            self.notes = _plain_notes(content)
            self._archive.check(self._views.values())
        except MmrlError:
            raise
        except zipfile.BadZipFile as error:
            raise MmrlError(f"{path} is cut, or not a file of torch.save in its present format (since torch 1.6).") from error
        except OSError as error:
            raise MmrlError(f"cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # whatever a damaged file makes the readers stumble on
            raise MmrlError(f"{path} is damaged, or no file of torch.save: {type(error).__name__} {first_line(error)}") from error
        if not self._views:
            raise MmrlError(f"{path} holds no named tensors.")

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __getitem__(self, name: str) -> Tensor:
        view = self._views[name]
        try:
            return self._archive.read(view)
        except Exception as error:
            raise MmrlError(f"tensor '{name}' of {self.path} is damaged: {first_line(error)}") from error


def _named_views(content: object) -> dict[str, View]:
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name.removeprefix("module."): view for name, view in _views_in(content, "", DEEPEST, set())}


def _views_in(content: object, before: str, levels: int, seen: set[int]) -> Iterator[tuple[str, View]]:
    """Each dict once, wherever it stands: a small file may name one in very many places."""
    if not isinstance(content, dict) or id(content) in seen or not levels:
        return
    seen.add(id(content))
    for name, value in content.items():
        view = view_of(value) if isinstance(name, str) else None
        if view is not None:
            yield before + name, view
        elif isinstance(name, str):
            yield from _views_in(value, f"{before}{name}.", levels - 1, seen)


def _plain_notes(content: object) -> dict[str, Any]:
    """What is plain under `metadata`."""
    found = content.get("metadata") if isinstance(content, dict) else None
    plain = (str, int, float, bool, type(None))

    def ok(value: object) -> bool:
        return isinstance(value, plain) or (type(value) in (list, tuple) and all(isinstance(one, plain) for one in value))  # type: ignore[attr-defined]

    return {name: value for name, value in found.items() if isinstance(name, str) and ok(value)} if isinstance(found, dict) else {}
