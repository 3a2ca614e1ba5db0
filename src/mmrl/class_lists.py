"""Class names as people write them."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.errors import UsageError
from mmrl.files import parse_json, read_regular, user_path

MOST_NAMES = 64 * 2**20  # bytes of a file of class names


def class_names(value: str | Sequence[str]) -> list[str]:
    """Class names from a list of them, from 'a,b,c', or from a file: one name a line, or a JSON list.

    Raises:
        UsageError: the file cannot be read.
    """
    if not isinstance(value, str):
        return list(value)
    if "," in value or not _is_list_file(value):
        return [name.strip() for name in value.split(",")]
    path = user_path(value)
    content = read_regular(path, what="file of class names", most=MOST_NAMES)
    try:
        names = parse_json(content) if path.suffix == ".json" else [n for n in content.decode("utf-8-sig").splitlines() if n.strip()]
    except ValueError as error:
        raise UsageError(f"cannot read the class names in {value}: {error}. Give 'a,b,c', or a file in UTF-8, one name a line.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{value} must hold a list of class names.")
    return names


def _is_list_file(value: str) -> bool:
    if value.endswith((".txt", ".json")):
        return True
    try:
        return user_path(value).is_file()
    except (UsageError, OSError):  # a name that no file can have
        return False
