"""Which image files a path, a folder or a pattern stands for."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from mmrl.data.formats import IMAGE_ENDINGS, is_image, lacks_extra, say_skipped
from mmrl.errors import UsageError
from mmrl.files import user_path


def image_files(spec: str | Path) -> list[str]:
    """Files that `spec` names, sorted: the file itself, the images directly in a folder, or those that a pattern with *, ? or [] matches,
    in which ** is any number of folders. Hidden files, what systems leave beside photos, and files without an image's ending are left out
    of folders and patterns.

    A path that is not there is returned as it is: reading it says so, and of many, one that is gone need not stop the others.

    Warns:
        Notice: HEIC photos were skipped, as the library that reads them is not installed.

    Raises:
        UsageError: a folder or pattern without an image, or a folder that cannot be listed.
    """
    path = user_path(spec)
    if path.is_dir():
        return _inside(path)
    if not glob.has_magic(str(spec)) or path.exists():
        return [str(spec)]
    found = sorted(each for each in glob.glob(str(path), recursive=True) if os.path.isfile(each))
    images = _images(found, spec)
    if not images:
        what = f"{len(found)} files match, and none ends as an image does ({_endings()})" if found else "no file matches"
        raise UsageError(f"the pattern '{spec}' gives no image: {what}. Check the pattern; ** stands for folders in folders.")
    return images


def _inside(folder: Path) -> list[str]:
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"cannot look into the folder {folder}: {error.strerror}. Check its permissions.") from error
    images = _images([str(file) for file in found if file.is_file()], folder)
    if not images:
        below = any(file.is_dir() for file in found)
        hint = f" For those in its subfolders give a pattern: '{folder}/**/*'." if below else ""
        raise UsageError(f"the folder {folder} has no images directly in it ({_endings()}).{hint}")
    return images


def _images(files: list[str], where: str | Path) -> list[str]:
    say_skipped([file for file in files if lacks_extra(Path(file).name)], where)
    return [file for file in files if is_image(Path(file).name)]


def _endings() -> str:
    return ", ".join(sorted(IMAGE_ENDINGS))
