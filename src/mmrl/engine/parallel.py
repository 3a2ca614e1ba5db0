"""The processes that train one run together: what they agree on, and how they fail together."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmrl.errors import MmrlError, UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while the main process writes or evaluates


class Peers:
    """The processes of a training, seen from one of them.

    Args:
        rank: number of this process, from 0 (the main one, which alone writes and prints), of `count`.
        group: through which objects travel; None for a process on its own, where everything here costs nothing.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None) -> None:
        self.rank, self.count, self.main = rank, count, rank == 0
        self._group = group

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives in this process. If it fails in any of them, all raise: an error of their own, else the first one's."""
        if self.count == 1:
            return work()
        try:
            result = work()
        except Exception as error:
            self._agree(error)
        self._agree(None)
        return result

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` gives in the main process, in all of them; the others wait for it. Its error is raised in all."""
        if self.count == 1:
            return work()
        found = [self.together(lambda: work() if self.main else None)]
        dist.broadcast_object_list(found, src=0, group=self._group)
        return found[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value, group=self._group)
        return values

    def mean(self, tensors: list[Tensor]) -> None:
        """Put the mean over the processes into each of `tensors`, which travel as one."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def check_devices(self, device: torch.device) -> None:
        """Raises UsageError, in all processes, if two of them have the same GPU."""
        if self.count > 1 and device.type == "cuda":
            gpus = set(self.gather((platform.node(), str(torch.cuda.get_device_properties(device).uuid))))
            if len(gpus) < self.count:
                raise UsageError(f"{self.count} processes were started for {len(gpus)} GPU(s); start one for each.")

    def _agree(self, error: Exception | None) -> None:
        failed = torch.tensor(error is not None, dtype=torch.int)  # first a number: errors are rare, and objects take longer
        dist.all_reduce(failed, group=self._group)
        if failed:
            self._fail(error)

    def _fail(self, error: Exception | None) -> NoReturn:
        told = error if error is None or isinstance(error, MmrlError) else MmrlError(f"process {self.rank} failed: {error!r}")
        errors = self.gather(told)
        raise error or next(each for each in errors if each is not None)


@contextmanager
def joined(device: torch.device) -> Iterator[Peers]:
    """All processes that a launcher (torchrun, `accelerate launch`) started; this one alone where there was none.

    Torch's process group is made if there is none, and stays for the next training: a process can join it only once.
    """
    if not dist.is_available() or (not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) == 1):
        yield Peers()
        return
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    if dist.get_world_size() == 1:
        yield Peers()
        return
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Peers(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group(group)


def leave() -> None:
    """Leave torch's process group, if there is one; for the end of a program whose trainings went well."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
