"""The only training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch

from mmrl.clip import ClassList
from mmrl.engine.batches import Batch, Batches, arriving, placed
from mmrl.engine.config import FitConfig
from mmrl.engine.guard import READ_EVERY, Guard, Row, tensors_of
from mmrl.engine.optimizers import load_state, make_optimizer, set_rate
from mmrl.engine.parallel import Peers
from mmrl.engine.randomness import random_state, set_random_state
from mmrl.engine.replay import Recorder, Replay, recorder_of
from mmrl.engine.schedule import length_of, rates_of
from mmrl.engine.step import More, Stepper
from mmrl.engine.turns import Turns, finish
from mmrl.methods import Method

MOST_SKIPPED = 50  # steps in a row that fp16 may skip while its scale adapts
State = dict[str, Any]


class Trainer:
    """Trains the parameters of `method` in place, with gradients averaged over `accumulate` batches.

    Several processes train as one: each computes on its part of every batch, and gradients and history are means over all.

    A step leaves what it measured on the device. It is read, and looked through for numbers that are not finite, every few steps, at
    checkpoints and at ends of epochs; so `history` and `watch` may be that many steps late.

    Args:
        batches: with the images of this process.
        peers: the processes; by default this one alone.
        save: called with the state at checkpoints.
        watch: called for every step with its row of the history, once it is read.
        read_every: steps between readings; default: a few on a GPU, and 1 on a processor, before the parameters move.
        recorder: how steps are recorded and replayed; default: what `compile` says.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        classes: ClassList,
        config: FitConfig,
        *,
        peers: Peers | None = None,
        save: Callable[[State], None] | None = None,
        watch: Callable[[Row], None] | None = None,
        read_every: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.method, self.batches, self.classes, self.config = method, batches, classes, config
        self.device = method.clip.device
        self.peers = peers or Peers()
        self._save, self._watch = save, watch
        parameters = list(method.parameters())
        own = method.optimizer(parameters, config)
        recorder = recorder or recorder_of(method, config, self.peers, own_optimizer=own is not None)
        self._static = recorder is not None and recorder.static
        self.optimizer = own or make_optimizer(parameters, config, static=self._static)
        scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.stepper = Stepper(method, classes, config, self.peers, self.optimizer, scaler)
        self.replay = Replay(self.stepper, recorder, config.accumulate) if recorder else None
        waits = self.device.type == "cuda" and not scaler.is_enabled()  # the scaler waits for the device in every step anyway
        self._guard = Guard(self.stepper, self.peers, read_every or (READ_EVERY if waits else 1))
        self.steps, self.epochs = length_of(config, len(batches))
        self.rates = rates_of(config, len(batches))
        self.epoch, self.position, self.step = 0, 0, 0  # position: batches of this epoch behind us
        self.history: list[Row] = []
        self._before, self._start = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent training, also by processes before this one."""
        return self._before + time.monotonic() - self._start

    def state(self) -> State:
        """Everything to go on from, as plain data and tensors. Raises NonFiniteError where a step came to a number that is not finite."""
        self._read()
        return {
            "finished": False,
            "epoch": self.epoch,
            "position": self.position,
            "step": self.step,
            "parameters": {name: value.detach().cpu() for name, value in tensors_of(self.method).items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            **random_state(self.device),
            "history": self.history,
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on where `state` was taken."""
        with torch.no_grad():
            for name, value in tensors_of(self.method).items():
                value.copy_(state["parameters"][name])
        load_state(self.optimizer, state["optimizer"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        set_random_state(state, self.device)
        self._guard.restart()
        self.epoch, self.position, self.step = state["epoch"], state["position"], state["step"]
        self.history = list(state["history"])
        self._before = state["seconds"]

    def run(self) -> None:
        """Train to the end. Raises as `turns`."""
        finish(self.turns())

    def turns(self) -> Turns[None]:
        """Train to the end, a step a turn.

        Raises:
            NonFiniteError: something is not finite; it is named, and the parameters are set back to the latest whose loss was finite.
        """
        was_training = self.method.training
        self.method.train()
        try:
            while self.step < self.steps:
                batches = arriving(self.batches, self.epoch, self.position, self.device)
                while self.step < self.steps:
                    yield from self._wait()
                    if not self._take(batches):
                        break
                self._read()
                self.epoch, self.position = self.epoch + 1, 0
                self.method.epoch_ended(self.epoch, self.epochs)
                self._checkpoint()
        finally:
            self.method.train(was_training)

    def _wait(self) -> Turns[None]:
        """While others take their turns, which is not this training's time."""
        self._before = self.seconds
        yield self.epoch, self.position
        self._start = time.monotonic()

    def _take(self, batches: Iterator[Batch]) -> bool:
        """A step on the next of `batches`, if there are any; an image that cannot be read in one process is an error in all."""
        group = self.peers.together(lambda: list(islice(batches, self.config.accumulate)))
        if not group:
            return False
        try:
            self._step(group)
        except Exception:
            if self.peers.count == 1:  # else it would wait for the others
                self._read()  # a number that is not finite, and not read yet, may be why
            raise
        if self.step == self.steps:
            self._read()
            self._guard.require_finite_end()
        return True

    def _step(self, group: list[Batch]) -> None:
        """One step on the mean loss of a few batches; its row has loss, accuracy and terms, averaged over them and all processes."""
        rate = self._rate()
        set_rate(self.optimizer, rate, static=self._static)
        self._guard.begin(group, {"step": self.step + 1, "epoch": self.epoch + 1, "lr": rate})
        replayed = self.replay.step(group) if self.replay else None
        if replayed:
            self._guard.measured(replayed, replayed=True)
        else:
            self._step_as_usual(group, rate)
        self.step += 1
        self.position += len(group)
        if replayed and self._guard.due:
            self._read()
        self._tell()
        every = self.config.checkpoint_every
        if every and self.step % every == 0 and self.position < len(self.batches) and self.step < self.steps:
            self._checkpoint()

    def _step_as_usual(self, group: list[Batch], rate: float) -> None:
        computed = self.stepper.gradients([(placed(images, self.device), labels.to(self.device)) for images, labels in group])
        self._guard.measured(computed)
        if self._guard.due:
            self._guard.read()  # before the parameters move
        self.stepper.update()
        if self.stepper.skipped > MOST_SKIPPED:
            self._guard.stop()
        with self.stepper.autocast():
            self.method.stepped(computed.kept, self.classes, More(self.stepper, rate))

    def _rate(self) -> float:
        """Learning rate of the present step."""
        return self.rates[self.epoch if self.config.schedule_step == "epoch" else self.step]

    def _read(self) -> None:
        """Read what the steps since the last reading measured. Raises NonFiniteError."""
        try:
            self._guard.read()
        finally:
            self._tell()

    def _tell(self) -> None:
        """Put the rows that were read into the history."""
        rows, self._guard.rows = self._guard.rows, []
        for row in rows:
            self.history.append(row)
            if self._watch is not None:
                self._watch(row)

    def _checkpoint(self) -> None:
        if self._save is not None:
            self._save(self.state())
