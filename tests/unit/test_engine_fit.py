"""The loop: what it computes, when it stops, and what it leaves behind."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip, Images
from mmrl.engine.checkpoint import read_state
from mmrl.engine.guard import NonFiniteError
from mmrl.engine.loop import Trainer
from mmrl.errors import MmrlError, UsageError
from mmrl.methods import Loss, Method
from tests.oracle.pair import relative_error
from tests.unit import colours
from tests.unit.colours import NAMES, PROMPT, Batch, Same, clip_on_one_thread, fresh, noise, smallest_clip

QUICK = {"epochs": 2, "lr": 1e-2}

clip = pytest.fixture(scope="module")(clip_on_one_thread)


def train(method: Method, batches: list[Batch] | Same, out: Path | None = None, resume: bool = False, **values: Any) -> engine.FitResult:
    return colours.train(method, batches, engine.FitConfig(**{**QUICK, **values}), out, resume=resume)


def parameters(method: Method) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in method.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


# ---- what it computes ----


def test_equals_the_loop_written_out(clip: Clip) -> None:
    method, plain, batches = fresh(clip), fresh(clip), noise(3)
    result = train(method, batches, epochs=3, weight_decay=0.1)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.1)
    classes = plain.class_list(NAMES, PROMPT)
    losses = []
    for rate in engine.learning_rates(3, 1e-2, warmup=1, warmup_lr=1e-5):
        optimizer.param_groups[0]["lr"] = rate
        for images, labels in batches:
            loss = plain.loss(images, labels, classes)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            losses.append(float(loss.total.detach()))
    assert [row["loss"] for row in result.history] == losses
    assert equal(parameters(method), parameters(plain))


def test_history_has_every_step(clip: Clip) -> None:
    history = train(fresh(clip), noise(3)).history
    assert [(row["step"], row["epoch"], row["lr"]) for row in history] == [(i, 1 + (i > 3), [1e-5, 1e-2][i > 3]) for i in range(1, 7)]
    assert list(history[0]) == ["step", "epoch", "lr", "loss", "accuracy", "ce_class", "ce_rep", "reg_image", "reg_text"]


def test_accumulated_batches_equal_one_large_batch(clip: Clip) -> None:
    """In float64, which `engine.fit` refuses: Adam makes of float32's rounding what it likes."""
    exact = deepcopy(clip)
    exact.model.double()
    batches = [(images.double(), labels) for images, labels in noise(6)]
    joined = [tuple(torch.cat(part) for part in zip(*batches[i : i + 2], strict=True)) for i in (0, 2, 4)]

    def trained(batches: Any, accumulate: int) -> Trainer:
        config, method = engine.FitConfig(**QUICK, accumulate=accumulate), fresh(exact).double()
        trainer = Trainer(method, Same(batches), method.class_list(NAMES, PROMPT), config)
        trainer.run()
        return trainer

    a, b = trained(batches, 2), trained(joined, 1)
    assert len(a.history) == len(b.history) == 6
    assert [row["loss"] for row in a.history] == pytest.approx([row["loss"] for row in b.history], rel=1e-6)  # kept in float32
    for name, value in a.method.state_dict().items():
        assert relative_error(value, b.method.state_dict()[name]) < 1e-9, name


def test_an_incomplete_group_is_a_step_of_its_epoch(clip: Clip) -> None:
    assert [row["epoch"] for row in train(fresh(clip), noise(5), accumulate=3).history] == [1, 1, 2, 2]


def test_fit_is_deterministic_and_leaves_the_global_generator_alone(clip: Clip) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        method = fresh(clip)
        colours.train_on(method, colours.colours(), colours.base_draw(), {**QUICK, "seed": seed})
        found.append(parameters(method))
    assert equal(found[0], found[1]) and not equal(found[0], found[2])
    assert torch.equal(before, torch.get_rng_state())


def test_two_precisions_in_one_process(clip: Clip) -> None:
    results = {}
    for precision in ("fp32", "bf16", "fp32"):
        method = fresh(clip)
        results.setdefault(precision, []).append([row["loss"] for row in train(method, noise(2), precision=precision).history])
        assert all(p.dtype == torch.float32 for p in method.parameters())
    assert results["fp32"][0] == results["fp32"][1] != results["bf16"][0]
    assert results["bf16"][0] == pytest.approx(results["fp32"][0], rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(precision: str, tmp_path: Path) -> None:
    method = fresh(smallest_clip().to("cuda")).to("cuda")
    before = parameters(method)
    result = train(method, noise(4), tmp_path / "run", precision=precision, epochs=4)
    assert all(p.dtype == torch.float32 and p.is_cuda for p in method.parameters()) and not equal(before, parameters(method))
    assert result.history[-1]["loss"] < result.history[0]["loss"]


# ---- what is refused ----


def test_fp16_needs_cuda(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'fp16', which needs a CUDA device; on 'cpu' use 'bf16' or 'fp32'"):
        train(fresh(clip), noise(1), tmp_path / "x", precision="fp16")
    assert not (tmp_path / "x").exists()


def test_nothing_to_train(clip: Clip) -> None:
    with pytest.raises(UsageError, match="'zero-shot' has nothing to train"):
        train(methods.build("zero-shot", clip), noise(1))
    with pytest.raises(UsageError, match="not one full batch"):
        train(fresh(clip), [])
    with pytest.raises(UsageError, match="must be float32, but 'rep_space'"):
        train(fresh(clip).half(), noise(1))


def test_a_folder_with_another_run(clip: Clip, tmp_path: Path) -> None:
    train(fresh(clip), noise(1), tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="holds another run already"):
        train(fresh(clip), noise(1), tmp_path)
    with pytest.raises(UsageError, match=r"other settings.*options\.lam was 1\.0, is 2\.0; fit\.lr was 0\.01, is 0\.02\. Give what it had"):
        train(fresh(clip, lam=2.0), noise(1), tmp_path, resume=True, lr=0.02)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("name", ["README.md", "run.json", "adapter_model.safetensors"])
def test_other_peoples_files_are_not_overwritten(clip: Clip, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    for resume, words in ((False, "holds another run"), (True, "no training to resume")):
        with pytest.raises(UsageError, match=words):
            train(fresh(clip), noise(1), tmp_path, resume=resume)
    assert (tmp_path / name).read_text() == "mine"


def test_output_that_is_a_file_or_below_one(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; the output must be a folder"):
        train(fresh(clip), noise(1), tmp_path / "file")
    with pytest.raises(MmrlError, match="cannot write into .*Choose another folder"):
        train(fresh(clip), noise(1), tmp_path / "file" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(clip: Clip, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MmrlError, match="cannot write"):
        train(fresh(clip), noise(1), tmp_path / "x")


def test_two_processes_cannot_train_into_one_folder(clip: Clip, tmp_path: Path) -> None:
    code = "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    code += "; input()"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        try:
            with pytest.raises(UsageError, match="another process trains into"):
                train(fresh(clip), noise(1), tmp_path)
        finally:
            other.kill()
    train(fresh(clip), noise(1), tmp_path)  # the killed process left its file, but not its lock
    assert not (tmp_path / ".lock").exists()


# ---- what goes wrong on the way ----


class Wrapped(Method):
    """Does what another method does."""

    Options = methods.get("mmrl").Options

    def __init__(self, inner: Method) -> None:
        super().__init__(inner.clip, inner.options)
        self.inner = inner

    def class_list(self, names: Any, template: Any, *, memory_gib: float | None = None) -> Any:
        return self.inner.class_list(names, template, memory_gib=memory_gib)

    def loss(self, images: Tensor, labels: Tensor, classes: Any) -> Loss:
        return self.inner.loss(images, labels, classes)

    def head(self, classes: Any) -> Any:
        return self.inner.head(classes)

    def logits(self, images: Tensor, head: Any, seen: Tensor | bool) -> Tensor:
        return self.inner.logits(images, head, seen)


class Poisoned(Wrapped):
    """From step `at` on, one tensor is infinite."""

    def __init__(self, inner: Method, at: int, where: str) -> None:
        super().__init__(inner)
        self.at, self.where, self.calls = at, where, 0

    def loss(self, images: Tensor, labels: Tensor, classes: Any) -> Loss:
        loss, self.calls = self.inner.loss(images, labels, classes), self.calls + 1
        if self.calls < self.at:
            return loss
        if self.where == "gradient":
            zero = (self.inner.rep_space - self.inner.rep_space.detach()).abs().sum()  # type: ignore[union-attr, operator]
            return loss._replace(total=loss.total + zero.sqrt())
        return loss._replace(terms={**loss.terms, "ce_rep": loss.terms["ce_rep"] / 0}, total=loss.total / 0)


@pytest.mark.parametrize(("where", "name"), [("loss", "loss term 'ce_rep'"), ("gradient", "the gradient of 'inner.rep_space'")])
def test_the_first_bad_tensor_is_named(clip: Clip, where: str, name: str) -> None:
    good, bad = fresh(clip), Poisoned(fresh(clip), 4, where)
    train(good, noise(3), epochs=2)
    reference = fresh(clip)
    with pytest.raises(NonFiniteError, match=f"epoch 2, step 4: {name} is not finite"):
        train(bad, noise(3), epochs=2)
    known_good = 2 if where == "loss" else 3  # updates whose outcome gave a finite loss
    train(reference, noise(3)[:known_good], epochs=1, warmup_epochs=0, lr=1e-5)
    assert equal(parameters(bad.inner), parameters(reference))
    assert not equal(parameters(bad.inner), parameters(good))


def test_bad_images_and_bad_parameters_are_named(clip: Clip) -> None:
    batches = noise(2)
    batches[1][0][0, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="step 2: an input image is not finite"):
        train(fresh(clip), batches)
    method = fresh(clip)
    with torch.no_grad():
        method.projection[0, 0] = float("inf")  # type: ignore[operator]
    with pytest.raises(NonFiniteError, match="step 1: parameter 'projection' is not finite"):
        train(method, noise(2))


def test_a_stopped_training_keeps_its_checkpoint_and_an_adapter(clip: Clip, tmp_path: Path) -> None:
    batches = noise(3)
    batches[2][0].fill_(float("nan"))
    method = fresh(clip)
    with pytest.raises(NonFiniteError, match="They are kept in .*last_good"):
        train(method, batches, tmp_path, checkpoint_every=1)
    state = read_state(tmp_path / "training_state.bin")
    assert state["step"] == 2 and all(value.isfinite().all() for value in state["parameters"].values())
    kept, _ = engine.load_adapter(tmp_path / "last_good", clip)
    reference = fresh(clip)
    train(reference, batches[:1], epochs=1, warmup_epochs=0, lr=1e-5)
    assert equal(parameters(kept), parameters(method)) and equal(parameters(kept), parameters(reference))
    with pytest.raises(UsageError, match="has not finished; resume it: .* --resume"):
        engine.load_adapter(tmp_path, clip)


def test_full_disk_keeps_the_last_checkpoint(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MmrlError, match="cannot write .*training_state.bin: No space left on device. Free some space"):
            train(fresh(clip), noise(3), tmp_path, checkpoint_every=1)
    assert [path.name for path in tmp_path.iterdir()] == ["training_state.bin"]
    resumed, whole = fresh(clip), fresh(clip)
    train(resumed, noise(3), tmp_path, resume=True)
    train(whole, noise(3))
    assert equal(parameters(resumed), parameters(whole))


class Noisy(Wrapped):
    """Draws from torch's generator in every step, as dropout does; a kill is simulated at step `until`."""

    def __init__(self, inner: Method, until: int) -> None:
        super().__init__(inner)
        self.until, self.calls = until, 0

    def loss(self, images: Images, labels: Tensor, classes: Any) -> Loss:
        self.calls += 1
        if self.calls > self.until:
            raise KeyboardInterrupt
        return self.inner.loss(images.pixels + torch.randn(images.pixels.shape), labels, classes)


def test_random_numbers_go_on_after_resuming(clip: Clip, tmp_path: Path) -> None:
    whole, resumed, other = fresh(clip), fresh(clip), fresh(clip)
    train(Noisy(whole, 99), noise(3))
    with pytest.raises(KeyboardInterrupt):
        train(Noisy(fresh(clip), 5), noise(3), tmp_path, checkpoint_every=2)
    train(Noisy(resumed, 99), noise(3), tmp_path, resume=True)
    train(Noisy(other, 99), noise(3), seed=2)
    assert equal(parameters(whole), parameters(resumed)) and not equal(parameters(whole), parameters(other))


def test_a_damaged_state_is_said_so(clip: Clip, tmp_path: Path) -> None:
    train(fresh(clip), noise(1), tmp_path)
    path = tmp_path / "training_state.bin"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MmrlError, match="training state is damaged"):
        train(fresh(clip), noise(1), tmp_path, resume=True)


# ---- afterwards ----


def test_resuming_a_finished_run_loads_it(clip: Clip, tmp_path: Path) -> None:
    first = fresh(clip)
    done = train(first, noise(2), tmp_path)
    size = (tmp_path / "training_state.bin").stat().st_size
    again, other = fresh(clip), Same(noise(2))
    result = train(again, other, tmp_path, resume=True)
    assert result.loaded and not done.loaded and other.taken == 0 and equal(parameters(first), parameters(again))
    assert result.history == done.history and result.seconds == done.seconds
    assert size < 8000  # parameters and optimizer are gone


def test_tensorboard(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no output folder"):
        train(fresh(clip), noise(1), log="tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = train(fresh(clip), noise(2), tmp_path / "a", log="tensorboard").history
    events = accumulator.EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("ce_class")] == pytest.approx([row["ce_class"] for row in history])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'mmrl\[tensorboard\]'"):
        train(fresh(clip), noise(1), tmp_path / "b", log="tensorboard")
