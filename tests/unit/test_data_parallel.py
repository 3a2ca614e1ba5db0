"""One training in two processes equals the same in one, and they fail together.

Batches and their halves are summed in another order, so float32 is held by norms; the loop in float64 is held to 1e-9.
`scenarios` runs in two processes that torchrun starts, one training after another in one process group; each writes down what it found.
"""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmrl import api, engine
from mmrl.cli.main import app
from mmrl.clip import Clip
from mmrl.clip.device import _own_gpu
from mmrl.data import TrainBatches
from mmrl.engine.features import preprocess_of
from mmrl.engine.fit import _share
from mmrl.engine.loop import Trainer
from mmrl.engine.parallel import joined
from mmrl.errors import MmrlError, UsageError
from mmrl.methods import Method, Task
from mmrl.methods.mmrl import MMRL
from tests.oracle.pair import relative_error
from tests.unit import colours as of_colours
from tests.unit.colours import COLOURS, NAMES, OPTIONS, base_draw, clip_on_one_thread, colours, fresh, noise, read, smallest_clip

ROOT = Path(__file__).parents[2]
FIT = {"epochs": 3, "lr": 1e-3, "batch_size": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mmrl": ("mmrl", {}),
    "mmrlpp": ("mmrlpp", {}),
    "accumulated": ("mmrl", {"batch_size": 2, "accumulate": 3}),  # of 4 batches an epoch
    "bf16": ("mmrl", {"precision": "bf16"}),
    "whole batch": ("provp", {"optimizer": "sgd", "lr": 0.1}),  # a contrast between its images
    "stops on the batch": ("plot", {"optimizer": "sgd", "lr": 0.1}),  # Sinkhorn's algorithm, where the mean error is small
    "views": ("mmrl", {"views": 1}),  # of an image that another process showed first
    "more steps": ("metaprompt", {"optimizer": "sgd", "lr": 0.05, "batch_size": 2, "accumulate": 3}),  # on parts of it, drawn at random
}
OWN = {"prograd": {"n_ctx": 4}, "plot": {"n_ctx": 4, "n_prompts": 2}}  # options: the small text tower reads 16 tokens
TWICE = ("prograd", {"lr": 0.1, "optimizer": "sgd", "batch_size": 2, "accumulate": 3})  # two backward passes a batch, and projections
IN_FLOAT64 = [case for case, (_, values) in CASES.items() if not {"precision", "views"} & values.keys()]
Found = dict[str, Any]


class Noise:
    """Random batches, other ones in every epoch. In the last process, the one at `fatal` has a bad value or cannot be read."""

    def __init__(self, fatal: tuple[int, int] | None = None, value: float | Exception = 0.0) -> None:
        self.fatal, self.value, self.part = fatal, value, (0, 1)

    def __len__(self) -> int:
        return 4

    def shard(self, rank: int, of: int) -> Noise:
        part = Noise(self.fatal, self.value)
        part.part = (rank, of)
        return part

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        rank, of = self.part
        for position, (images, labels) in enumerate(noise(4, size=4, seed=number)[start:], start):
            images, labels = images.chunk(of)[rank], labels.chunk(of)[rank]
            if (number, position) == self.fatal and rank == of - 1:
                if isinstance(self.value, Exception):
                    raise self.value
                images = images.clone()
                images[0, 0, 0, 0] = self.value
            yield images, labels


class Halves:
    """What two processes train on, one half of a batch after the other."""

    def __init__(self, whole: TrainBatches) -> None:
        self.parts = [whole.shard(rank, 2) for rank in range(2)]

    def __len__(self) -> int:
        return 2 * len(self.parts[0])

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from (half for pair in zip(*(part.epoch(number) for part in self.parts), strict=True) for half in pair)


class InFloat64:
    """Batches with images in float64."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((images.double(), labels) for images, labels in self.batches.epoch(number, start))


class Without:
    """Batches that cannot be divided."""

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from noise(1)


def state(method: Method) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def many() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def fitted(clip: Clip, case: str, out: Path | None = None) -> Found:
    name, values = CASES[case]
    method = fresh(clip, name, **OWN.get(name, {}))
    result = of_colours.train_on(method, colours(), base_draw(), {**FIT, **values}, out)
    return {"state": state(method), "history": result.history, "processes": many()}


def in_float64(clip: Clip, name: str, values: dict[str, Any]) -> Found:
    """As `fitted`; `engine.fit` takes float32 alone, so the loop it runs is called here."""
    data, config, exact = colours().restrict("base"), engine.FitConfig(**{**FIT, **values}), copy.deepcopy(clip)
    exact.model.double()
    method = fresh(exact, name, **OWN.get(name, {}))
    method.setup(Task(data.classes, data.template))
    method = method.double()
    with joined(clip.device) as peers:
        whole = TrainBatches(data, base_draw().train, preprocess_of(clip, flip=data.flip), config.batch_size, config.seed)
        batches = InFloat64(_share(method, whole, peers))
        trainer = Trainer(method, batches, method.class_list(data.classes, data.template), config, peers=peers)
        trainer.run()
    return {"state": state(method), "history": trainer.history, "processes": peers.count}


def in_halves(clip: Clip, case: str) -> Found:
    name, values = CASES[case]
    data, draw, config = colours().restrict("base"), base_draw(), engine.FitConfig(**{**FIT, **values})
    whole = TrainBatches(data, draw.train, preprocess_of(clip, flip=data.flip), config.batch_size, config.seed)
    return trained(clip, Halves(whole), name=name, classes=data.classes, **{**values, "accumulate": 2 * config.accumulate})


def trained(
    clip: Clip, batches: Any, out: Path | None = None, resume: bool = False, *, name: str = "mmrl", classes: Any = NAMES, **values: Any
) -> Found:
    method = fresh(clip, name)
    result = of_colours.train(method, batches, engine.FitConfig(**{**FIT, **values}), out, resume=resume, classes=classes)
    return {"state": state(method), "history": result.history}


def refused(work: Callable[[], object]) -> str:
    """Kind and message of the error."""
    try:
        work()
    except (MmrlError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class Idle(MMRL):
    """A method with a parameter that its loss does not use."""

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip, fresh(clip).options)
        self.unused = nn.Parameter(torch.ones(2))


def untouched(clip: Clip) -> Found:
    torch.manual_seed(1)
    method = Idle(clip)
    before = state(method)
    of_colours.train(method, Noise(), engine.FitConfig(**FIT))
    return {"before": before, "state": state(method)}


def scenarios(clip: Clip, place: Path) -> Found:
    found: Found = {case: fitted(clip, case, place / case) for case in CASES}
    found |= {f"{case} in float64": in_float64(clip, *CASES[case]) for case in IN_FLOAT64}
    found["twice"] = in_float64(clip, *TWICE)
    found["uneven"] = refused(lambda: of_colours.train_on(fresh(clip), colours(), base_draw(), {**FIT, "batch_size": 3}))
    found["without shard"] = refused(lambda: trained(clip, Without()))
    found["taken"] = refused(lambda: fitted(clip, "mmrl", place / "mmrl"))
    found["unused"] = untouched(clip)
    broken = Noise((1, 2), UsageError("photo.jpg cannot be read"))
    found["stopped"] = refused(lambda: trained(clip, broken, place / "resumed", checkpoint_every=1))
    found["resumed"] = trained(clip, Noise(), place / "resumed", resume=True)
    found["again"] = trained(clip, Noise(), place / "resumed", resume=True)
    found["other"] = refused(lambda: trained(clip, Noise(), place / "resumed", resume=True, lr=0.5))
    found["not finite"] = refused(lambda: trained(clip, Noise((1, 2), float("nan")), place / "nan"))
    found["large"] = refused(lambda: trained(clip, Noise((1, 2), 1e38), place / "large"))
    run = api.train(colours(), backbone=clip, classes="base", shots=4, out=place / "run", progress=False, workers=0, **FIT, **OPTIONS)
    found["run"] = run.record.model_dump_json()
    found["bug"] = refused(lambda: trained(clip, Noise((0, 0), KeyError("number"))))
    return found


def printed(photos: Path, out: Path) -> str:
    """What the command prints, in the process group that is there."""
    words = ["train", "--data", photos, "--shots", 2, "--allow-fewer", "--out", out, "--set", "epochs=2", "--set", "batch_size=4"]
    with redirect_stdout(io.StringIO()) as text:
        app(list(map(str, words)), standalone_mode=False)
    return text.getvalue()


def launch(*command: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes went through all scenarios."""
    folder = tmp_path_factory.mktemp("two")
    for name in COLOURS:
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            read(f"{name}/{number}").save(folder / "photos" / name / f"{number}.png")
    done = launch("tests.unit.test_data_parallel", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def both(place: Path) -> list[Found]:
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(2)]


clip = pytest.fixture(scope="module")(clip_on_one_thread)


def error(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest |a - b| / |b| of all tensors, in the Euclidean norm."""
    assert a.keys() == b.keys()
    return max(relative_error(a[name], b[name]) for name in a)


def columns(history: list[dict[str, float]]) -> dict[str, Tensor]:
    """What the rows of a history say, by name."""
    return {name: torch.tensor([row[name] for row in history], dtype=torch.float64) for name in history[0]}


# ---- the same as one process ----


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(both: list[Found], clip: Clip, case: str) -> None:
    name = CASES[case][0]
    untrained, alone = fresh(clip, name, **OWN.get(name, {})), fitted(clip, case)
    halves = [] if untrained.whole_batch or case == "views" else [in_halves(clip, case)]
    first, second = (found[case] for found in both)
    assert first["processes"] == 2 and alone["processes"] == 1
    assert error(first["state"], second["state"]) == 0 and first["history"] == second["history"]
    assert error(state(untrained), alone["state"]) > 1e-3, "it learned nothing, so nothing was compared"
    for other in (*halves, *([alone] if case != "bf16" else [])):  # in bf16 a batch and its halves round differently
        assert len(first["history"]) == len(other["history"]) == 6
        ours, theirs = columns(first["history"]), columns(other["history"])
        assert ours.keys() == theirs.keys() and relative_error(ours["loss"], theirs["loss"]) <= 1e-4
        assert error(first["state"], other["state"]) <= 1e-4


@pytest.mark.parametrize("case", IN_FLOAT64)
def test_two_processes_equal_one_in_float64(both: list[Found], clip: Clip, case: str) -> None:
    alone = in_float64(clip, *CASES[case])
    first, second = (found[f"{case} in float64"] for found in both)
    assert first["processes"] == 2 and alone["processes"] == 1
    assert error(first["state"], second["state"]) == 0 and first["history"] == second["history"]
    assert all(value.dtype == torch.float64 for value in first["state"].values())
    assert error(first["state"], alone["state"]) <= 1e-9
    assert error(columns(first["history"]), columns(alone["history"])) <= 1e-6  # the history keeps float32


def test_a_shard_is_its_part_of_every_batch(clip: Clip) -> None:
    read_by: list[list[str]] = [[], []]

    def batches(rank: int, of: int, workers: int = 0) -> list[tuple[Tensor, Tensor]]:
        data = replace(colours(), read=lambda key: (read_by[rank].append(key), read(key))[1])
        loader = TrainBatches(data, data.train, preprocess_of(clip, flip=True), 6, seed=3, workers=workers)
        return list(loader.shard(rank, of).epoch(2, start=1))

    whole = batches(0, 1)
    read_by[0].clear()
    for parts in (batches(0, 2), batches(1, 2, workers=2)):
        assert [len(labels) for _, labels in parts] == [3] * 4
    assert not set(read_by[0]) & set(read_by[1])
    for (images, labels), *parts in zip(whole, batches(0, 2), batches(1, 2), strict=True):
        assert torch.equal(images, torch.cat([part[0] for part in parts])) and torch.equal(labels, torch.cat([part[1] for part in parts]))


def test_gradients_of_ones_own_are_means_over_the_processes(both: list[Found], clip: Clip) -> None:
    """Projected after both were averaged, so two processes do what one does; the mean of two projections is another direction."""
    alone = in_float64(clip, *TWICE)
    for found in both:
        assert error(found["twice"]["state"], alone["state"]) <= 1e-9
        assert error(columns(found["twice"]["history"]), columns(alone["history"])) <= 1e-6  # the history keeps float32


def test_one_record_of_the_main_process(both: list[Found], place: Path) -> None:
    assert both[0]["run"] == both[1]["run"]
    record = engine.read_config(place / "run"), (place / "run" / "run.json").read_text()
    assert record[0].method == "mmrl" and '"novel"' in record[1]
    assert sorted(path.name for path in (place / "mmrl").iterdir()) == sorted(
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "training_state.bin"]
    )


def test_a_resumed_training_equals_an_undisturbed_one(both: list[Found], clip: Clip) -> None:
    alone = trained(clip, Noise())
    for found in both:
        assert found["stopped"] == "UsageError: photo.jpg cannot be read"
        assert len(found["resumed"]["history"]) == 12
        assert error(found["resumed"]["state"], alone["state"]) <= 1e-4
        assert error(found["again"]["state"], found["resumed"]["state"]) == 0


def test_a_parameter_that_the_loss_does_not_use_stays(both: list[Found]) -> None:
    first, second = (found["unused"] for found in both)
    assert error(first["state"], second["state"]) == 0
    assert {name for name, value in first["state"].items() if torch.equal(value, first["before"][name])} == {"unused"}


# ---- failing together ----


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        ("uneven", "UsageError: batch_size is 3, which 2 processes cannot share equally; give a multiple of 2, such as 4."),
        ("without shard", "UsageError: 2 processes cannot train on a Without"),
        ("taken", "holds another run already"),
        ("other", "fit.lr was 0.001, is 0.5"),
        ("not finite", "NonFiniteError: training stopped in epoch 2, step 7: an input image is not finite"),
        ("large", "NonFiniteError: training stopped in epoch 2, step 7: loss term"),
    ],
)
def test_all_processes_raise_the_same(both: list[Found], scenario: str, message: str) -> None:
    assert message in both[0][scenario]
    assert both[0][scenario] == both[1][scenario]


def test_a_bug_in_one_process_ends_the_others(both: list[Found]) -> None:
    assert both[0]["bug"] == "MmrlError: process 1 failed: KeyError('number')"
    assert both[1]["bug"] == "KeyError: 'number'"


def test_the_last_good_parameters_are_kept(both: list[Found], place: Path, clip: Clip) -> None:
    assert f"They are kept in {place / 'nan' / 'last_good'}." in both[1]["not finite"]
    method, _ = engine.load_adapter(place / "nan" / "last_good", clip)
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())


# ---- the command ----


def test_the_command_trains_once_and_prints_once(both: list[Found], place: Path) -> None:
    assert both[0]["printed"].count("tested on") == both[0]["printed"].count("written to") == 1
    assert both[1]["printed"] == ""
    assert (place / "command" / "run.json").exists()


def test_a_mistake_is_one_message(place: Path, tmp_path: Path) -> None:
    words = ["--data", place / "photos", "--shots", 2, "--out", tmp_path / "run", "--set", "epochs=2", "--set", "batch_size=3"]
    done = launch("mmrl", "train", *words)
    assert done.returncode != 0 and "exitcode  : 2 " in done.stderr
    assert done.stderr.count("error: batch_size is 3, which 2 processes cannot share equally") == done.stderr.count("error: ") == 1


def test_cuda_is_the_gpu_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = torch.device("cuda")
    assert _own_gpu(cuda) == cuda
    for rank, expected in (("1", "cuda:1"), ("2", "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert str(_own_gpu(cuda)) == expected
        assert str(_own_gpu(torch.device("cuda:1"))) == "cuda:1" and str(_own_gpu(torch.device("cpu"))) == "cpu"


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    everything = scenarios(smallest_clip(), target)
    everything["printed"] = printed(target / "photos", target / "command")  # leaves the process group: the last one
    torch.save(everything, target / f"{os.environ['RANK']}.pt")
