"""Building the layout of a data set from downloaded archives, without replacing existing files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl.data.benchmark.check import Report, check_dataset
from mmrl.data.benchmark.entries import ENTRIES
from mmrl.data.benchmark.entry import Entry
from mmrl.data.benchmark.sources import SOURCES, Piece, find_file, pieces_of
from mmrl.data.benchmark.unpack import is_archive, unpack
from mmrl.errors import MmrlError, UsageError
from mmrl.files import write_bytes

Say = Callable[[str], None]
_TEMPORARY = ".prepare-"


def prepare_dataset(entry: Entry, root: Path, *, source: Path | None = None, download: bool = False, say: Say = lambda _: None) -> Report:
    """Build the data set below the data root `root`, from archives and files in `source` or in its own folder.

    Archives are unpacked to a temporary folder and moved into place once complete. Existing files are never replaced.

    Args:
        download: let torchvision download what the given archives do not provide, if it can.
        say: called with one line per step.

    Returns:
        The report of `check_dataset` afterwards.

    Raises:
        UsageError: `source` is not a folder, or `download` for a data set that torchvision cannot download.
        MmrlError: an archive is damaged or unsafe, the download failed, or files cannot be written.
    """
    if source is not None and not source.is_dir():
        raise UsageError(f"--from {source} is not a folder. Pass the one that contains the downloaded archives.")
    if download:
        _downloader(entry)
    report = check_dataset(entry, root)
    folder = entry.folder_of(root)
    tried: set[tuple[Path, str]] = set()
    while not report.ready and _from_files(entry, root, source, report, tried, say):
        report = check_dataset(entry, root)  # which images are missing is known only once the lists exist
    if download and not report.ready:
        with _beside(folder) as temporary:
            _download(entry, temporary, say)
            _place([piece for piece in pieces_of(entry) if _needed(piece, folder, report)], temporary, folder, say)
        report = check_dataset(entry, root)
    left = sorted(path.name for path in folder.glob(f"{_TEMPORARY}*")) if folder.is_dir() else []
    if left:
        report.notes.append(
            f"{', '.join(left)} in {folder} is left over from a run that was killed, or belongs to one that is still running"
        )
    return report


def _from_files(entry: Entry, root: Path, source: Path | None, report: Report, tried: set[tuple[Path, str]], say: Say) -> bool:
    """Place every missing piece whose archive or file is found and was not tried before. Returns whether there was one."""
    folder = entry.folder_of(root)
    places = [place for place in (source, folder) if place is not None]
    if entry.same_classes_as in ENTRIES:
        places.append(ENTRIES[entry.same_classes_as].folder_of(root))  # has the same classnames.txt
    groups: dict[Path, list[Piece]] = {}
    for piece in pieces_of(entry):
        itself = Path(piece.target).name
        if not _needed(piece, folder, report):
            continue
        file = find_file((*piece.files, itself), places)
        if file is None and source is not None and (source / itself).is_dir():
            say(f"{source / itself} is unpacked already: move it, or link to it, at {folder / piece.target}")
        elif file is not None and (file, piece.target) not in tried:
            tried.add((file, piece.target))
            groups.setdefault(file, []).append(piece)
    for file, pieces in groups.items():
        if is_archive(file.name):
            _from_archive(file, pieces, places, folder, say)
        elif not (target := folder / pieces[0].target).exists():
            write_bytes(target, file.read_bytes())
            say(f"{target}: copied from {file}")
    return bool(groups)


def _from_archive(file: Path, pieces: list[Piece], places: list[Path], folder: Path, say: Say) -> None:
    first = pieces[0]  # an archive with its own `unpack` holds one piece
    others = {name: find_file((name,), places) for name in first.with_files}
    missing = [name for name, path in others.items() if path is None]
    if missing:
        say(f"{file} is not unpacked: put {' and '.join(missing)} beside it")
        return
    with _beside(folder) as temporary:
        say(f"unpacking {file}")
        if first.unpack is not None:
            first.unpack(file, temporary, [path for path in others.values() if path is not None])
        else:
            unpack(file, temporary)
            for inner in [path for path in temporary.rglob("*") if path.name in first.files and is_archive(path.name)]:
                unpack(inner, inner.parent)
        _place(pieces, temporary, folder, say)


def _needed(piece: Piece, folder: Path, report: Report) -> bool:
    """Whether it, or a file in it, is missing."""
    target = folder / piece.target
    return not target.exists() or report.lacks(target)


def _place(pieces: list[Piece], unpacked: Path, folder: Path, say: Say) -> None:
    """Move each piece from the folder `unpacked` to its place: the least nested file or folder of its name."""
    found: list[tuple[Path, Piece]] = []
    for piece in pieces:
        named = [path for name in piece.called for path in unpacked.rglob(name)]
        if named:
            found.append((min(named, key=_depth), piece))
        else:
            top = ", ".join(sorted(path.name for path in unpacked.iterdir())[:5])
            say(f"it does not contain {' or '.join(piece.called)}, but {top or 'nothing'}")
    for path, piece in sorted(found, key=lambda pair: -_depth(pair[0])):  # one may be inside another
        added, kept = _merge(path, folder / piece.target)
        say(f"{folder / piece.target}: " + (f"{added} added, {kept} already there and kept" if kept else "added"))


def _depth(path: Path) -> int:
    return len(path.parts)


def _merge(source: Path, target: Path) -> tuple[int, int]:
    """Move `source` to `target`; if that exists, only what it lacks. Returns how many were moved and how many kept."""
    if not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(source, target)
        return 1, 0
    if not (source.is_dir() and target.is_dir()):
        return 0, 1
    parts = [_merge(child, target / child.name) for child in sorted(source.iterdir())]
    return sum(added for added, _ in parts), sum(kept for _, kept in parts)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `folder`, so that moving files is a rename; removed afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    except OSError as error:
        raise MmrlError(f"cannot write to {folder}: {error.strerror}. Check its permissions, or free some space.") from error
    try:
        yield temporary
    except OSError as error:
        raise MmrlError(f"cannot write files to {folder}: {error}. The files already there are complete; run the command again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _downloader(entry: Entry) -> str:
    name = SOURCES[entry.name].torchvision if entry.name in SOURCES else None
    if name is None:
        gone = "; the address that torchvision knew is gone" if entry.name == "stanford_cars" else ""
        raise UsageError(f"'{entry.name}' cannot be downloaded from here{gone}. {_by_hand(entry)}")
    return name


def _by_hand(entry: Entry) -> str:
    return f"`mmrl data check {entry.name}` says which files to get; pass their folder with --from."


def _download(entry: Entry, into: Path, say: Say) -> None:
    from torchvision import datasets

    name = _downloader(entry)
    say(f"downloading {entry.title} with torchvision.datasets.{name}; this may take long")
    try:
        getattr(datasets, name)(root=str(into), download=True)
    except Exception as error:  # torchvision's downloaders raise whatever the network, the archive or the parser raised
        raise MmrlError(f"{entry.title} was not downloaded: {error}. Try again, or by hand: {_by_hand(entry)}") from error
