"""A worker of `mmrl.engine.grid.cluster`: computes jobs in a process that may be on another machine, and sends back what they give."""

from __future__ import annotations

import os
import shutil
import socket
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmrl.clip import load_clip
from mmrl.engine.context import Bench, Context
from mmrl.engine.grid.attempt import computing, failure_of, recorded_alone
from mmrl.engine.jobs import Job
from mmrl.engine.turns import finish
from mmrl.errors import MmrlError, Notice
from mmrl.files import write_bytes
from mmrl.reports.plans import Failure
from mmrl.reports.records import RunRecord

CPUS = 1  # of a worker, and so its threads
Files = dict[str, bytes]  # by path below their folder


@dataclass
class Result:
    """What a job gave: its record up to the failure, if there was one.

    Attributes:
        files: of the training's folder, where the worker could not write into the driver's.
    """

    record: RunRecord | None = None
    failure: Failure | None = None
    files: Files = field(default_factory=dict)


class Worker:
    """Computes one job after another. Its backbone and data sets are kept from the first one on, and end with its process.

    Args:
        node: Ray's name of the driver's machine; there the driver's folders are used.
        folder: the driver's working directory, for relative paths; used where it exists.
    """

    def __init__(self, bench: Bench, device: str, node: str, folder: str) -> None:
        import ray

        self.near = ray.get_runtime_context().get_node_id() == node
        self.bench = bench if self.near else replace(bench, cache=None, features=None)
        self.device = device
        self._context: Context | None = None
        with suppress(OSError):
            os.chdir(folder)
        torch.set_num_threads(CPUS)
        warnings.simplefilter("ignore", Notice)  # the driver said it

    def context(self) -> Context:
        if self._context is None:
            self._context = Context(self.bench, load_clip(self.bench.backbone, device=self.device))
        return self._context

    def compute(self, job: Job, before: RunRecord | None, home: Path, kept: list[Any]) -> Result:
        """The tests of `job` that `before` lacks.

        Args:
            home: the run's folder on the driver's machine.
            kept: reference to the files in it, or nothing.
        """
        result = Result()

        def save(record: RunRecord) -> None:
            result.record = record

        with TemporaryDirectory(prefix="mmrl-") as temporary:
            work = home if self.near else Path(temporary) / job.key
            try:
                if kept and not self.near:
                    import ray

                    unpack(ray.get(kept[0]), work)
                context = self.context()
                _check_same(job, context)
                with recorded_alone():
                    finish(computing(job, context, work if job.training else None, before, save))
            except Exception as error:
                device = self._context.clip.device if self._context else torch.device("cpu")
                failure = failure_of(job, error, device)
                result.failure = failure.model_copy(update={"error": failure.error.replace(str(work), str(home))})
            if not self.near:
                result.files = pack(work)
        return result


def _check_same(job: Job, context: Context) -> None:
    """Raises MmrlError if backbone or data are others than those that the driver made the keys from."""
    for cell, key in job.tests:
        if context.test_key(cell, job.key if job.training else None) != key:
            raise MmrlError(
                f"{socket.gethostname()} has another mmrl, another backbone '{context.clip.name}' or other files of {cell.dataset} than "
                "the machine that made the plan, or they changed since. Put the same on all machines, and start the command again."
            )


def pack(folder: Path) -> Files:
    """Contents of all files below `folder`; locks and half-written ones, whose names start with a dot, are left out."""
    found = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Make `folder` hold `files` alone. A kill leaves it as it was, absent, or as it shall be. Raises MmrlError if it cannot be written."""
    fresh, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    try:
        for left in (fresh, old):
            if left.exists():
                shutil.rmtree(left)
        for name, content in files.items():
            write_bytes(fresh / name, content)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise MmrlError(f"cannot write {folder}: {error.strerror or error}. Free some space or choose another folder.") from error
