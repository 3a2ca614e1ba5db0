"""Trainings that take turns in one process, each step as if it were alone.

What can wait between its steps is a generator of turns: it tells how far it is and waits, again and again, and returns its result.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from typing import TypeVar

import torch

from mmrl.engine.randomness import random_state, set_random_state

T = TypeVar("T")
At = tuple[int, ...]  # how far: epoch, then position in it, both from 0
Turns = Generator[At, None, T]


def finish(turns: Turns[T]) -> T:
    """The result of `turns`, which wait for nobody."""
    with closing(turns):
        while True:
            try:
                next(turns)
            except StopIteration as end:
                result: T = end.value
                return result


def timed(turns: Turns[T]) -> Turns[tuple[T, float]]:
    """The result of `turns`, and the seconds that they took themselves."""
    seconds = 0.0
    with closing(turns):
        while True:
            began = time.monotonic()
            try:
                at = next(turns)
            except StopIteration as end:
                return end.value, seconds + time.monotonic() - began
            seconds += time.monotonic() - began
            yield at


class _Row:
    """Turns in progress, with their own random numbers."""

    def __init__(self, turns: Turns[None], device: torch.device, number: int) -> None:
        self.turns, self.number, self.at = turns, number, At()
        self._device, self._random = device, random_state(device)

    def advance(self) -> bool:
        """Take a turn; whether there is another one."""
        others = random_state(self._device)
        set_random_state(self._random, self._device)
        try:
            self.at = next(self.turns)
            self._random = random_state(self._device)
        except StopIteration:
            return False
        finally:
            set_random_state(others, self._device)
        return True


def take_turns(rows: Iterable[Turns[None]], device: torch.device) -> None:
    """Finish `rows`: the one that is least far goes on, so those that are equally far stay together.

    A row is asked for right before its first turn. What one raises is raised in all, each where it waits, and here.

    Args:
        device: whose random numbers each row has its own of, besides those of the CPU.
    """
    flying: list[_Row] = []
    try:
        for number, turns in enumerate(rows):
            row = _Row(turns, device, number)
            if row.advance():
                flying.append(row)
        while flying:
            row = min(flying, key=lambda each: (each.at, (each.number - sum(each.at)) % len(flying)))  # what they share costs each in turn
            if not row.advance():
                flying.remove(row)
    except BaseException as error:
        for row in flying:
            with suppress(BaseException):
                row.turns.throw(error)
        raise
