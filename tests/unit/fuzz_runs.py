"""Readers of what trainings leave: checkpoints, adapters, states, records, results folders; and of options. As `fuzz_data`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

import jinja2
import torch
from safetensors.torch import load, save, save_file

from mmrl import engine, methods
from mmrl.class_lists import class_names
from mmrl.classifier.predictor import Classifier
from mmrl.cli.options import parse_seeds, parse_settings, parse_shots, parse_values
from mmrl.clip import load_clip
from mmrl.clip.load import read_openai_weights
from mmrl.engine.checkpoint import STATE_FORMAT, RunFolder, _seal
from mmrl.engine.context import settings
from mmrl.engine.untrusted import TensorFile
from mmrl.errors import MmrlError
from mmrl.files import lock
from mmrl.names import check_names
from mmrl.reports import report
from mmrl.reports.card import model_card
from mmrl.reports.cost import CostTable
from mmrl.reports.records import RunRecord, TestRecord, TrainingRecord, read_record
from mmrl.reports.status import status
from tests import results_folder
from tests.unit.colours import NAMES, fresh, smallest_clip
from tests.unit.fuzz_data import Once
from tests.unit.fuzzing import altered, damaged, damaged_archive, damaged_json, gadget, json_bytes, odd_value
from tests.unit.test_import_authors import authors_state, trained


def checkpoints(folder: Path) -> Once:
    """Checkpoints of the authors' code."""
    clip, trap = smallest_clip(), gadget(folder / "sprung")
    states, contents = [], []
    for name in ("mmrl", "mmrlpp"):
        state = authors_state(trained(clip, name))
        states.append({key: value for key, value in state.items() if "rep" in key or "srra" in key or key.count(".") == 1})
        torch.save({"state_dict": states[-1], "epoch": 10, "val_result": None}, folder / "x.pt")
        contents.append((folder / "x.pt").read_bytes())
    path, out = folder / "model.pth.tar-10", folder / "out"

    def once(random: Random) -> object:
        if random.random() < 0.3:
            torch.save({"state_dict": other_tensors(random, random.choice(states))}, path)
        else:
            path.write_bytes(damaged_archive(random, random.choice(contents), trap))
        if random.random() < 0.5:
            found = TensorFile(path)
            for name in found:
                check_tensor(found, name, path.stat().st_size)
            return found
        shutil.rmtree(out, ignore_errors=True)
        engine.import_authors(path, out, classes=NAMES, clip=clip)
        return engine.load_adapter(out, clip)

    return once


def check_tensor(found: TensorFile, name: str, size: int) -> None:
    """That a tensor is refused, or has no more in it than its file."""
    try:
        tensor = found[name]
    except MmrlError as error:
        assert name[:100] in str(error) or len(name) > 100
        return
    assert tensor.numel() * tensor.element_size() <= size


def adapters(folder: Path) -> Once:
    """Adapters of which the configuration, the tensors or both are damaged; the hash may follow, as a stranger's would."""
    clip = smallest_clip()
    whole = []
    task = methods.Task(NAMES, "a photo of a {}.", images=8)
    for name in ("mmrl", "mmrlpp", "zero-shot", "linear-probe", "tip-adapter", "plot"):
        place = folder / f"whole {name}"
        method = fresh(clip, name, **({"n_ctx": 4} if name == "plot" else {}))
        method.setup(task)
        engine.save_adapter(place, method, classes=NAMES, template="a photo of a {}.", dataset="colours")
        whole.append((json.loads((place / "adapter_config.json").read_text()), (place / "adapter_model.safetensors").read_bytes()))
    place = folder / "adapter"
    place.mkdir()

    def once(random: Random) -> object:
        config, tensors = random.choice(whole)
        way = random.random()
        if way < 0.5:
            tensors = save(other_tensors(random, load(tensors))) if random.random() < 0.5 else damaged(random, tensors)
            config = {**config, "sha256": hashlib.sha256(tensors).hexdigest() if random.random() < 0.8 else "0" * 64}
        (place / "adapter_model.safetensors").write_bytes(tensors)
        (place / "adapter_config.json").write_bytes(damaged_json(random, config) if way > 0.4 else json_bytes(config))
        method, found = engine.load_adapter(place, clip)
        classifier = Classifier(method, trained=found.class_names, template=found.template, trained_on=found.dataset)
        method.class_list(classifier.trained or ("cat",), classifier.template)
        assert all(bool(value.isfinite().all()) and value.dtype in (torch.float32, torch.int64) for value in method.state_dict().values())
        return engine.save_adapter(folder / "again", method, classes=found.class_names, template=found.template)

    return once


_KINDS = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64)


def other_tensors(random: Random, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of other kinds and shapes, missing, more, not finite."""
    found = dict(tensors)
    for name in random.sample(sorted(found), min(len(found), random.choice((1, 1, 3)))):
        value, way = found[name], random.randrange(7)
        if way == 0:
            found[name] = value.to(random.choice(_KINDS))
        elif way == 1:
            del found[name]
        elif way == 2:
            found[name] = value.flatten()[: random.randrange(3)].clone()
        elif way == 3:
            found[name] = torch.full_like(value, random.choice((float("nan"), float("inf"), 3e4)))
        elif way == 4:
            found[name + random.choice(("", ".x", "\0", "\xe9" * 2000))] = value.clone()
        elif way == 5:
            found[name] = value.sum()
        else:
            found[name] = value[..., None].clone()
    return found


def states(folder: Path) -> Once:
    """Training states: with a flipped bit, and as someone writes them who knows how they are sealed."""
    run = {"method": "mmrl", "fit": {"epochs": 3}, "classes": ["a"]}
    place, trap = folder / "run", gadget(folder / "sprung")
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    state = {
        "finished": False, "epoch": 1, "position": 0, "step": 5, "parameters": {"w": weight.detach()}, "optimizer": optimizer.state_dict(),
        "scaler": None, "rng": torch.get_rng_state()[:100].clone(), "rng_cuda": None, "history": [{"step": 1, "loss": 0.5}], "seconds": 1.0,
    }  # fmt: skip
    with RunFolder(place, run, resume=False) as held:
        held.save(state)
    path = place / "training_state.bin"
    whole = path.read_bytes()
    inner = whole[whole.index(b"\n") + 1 :]

    def once(random: Random) -> object:
        if random.random() < 0.3:
            path.write_bytes(damaged(random, whole))
        elif random.random() < 0.3:
            content = BytesIO()
            torch.save(altered(random, state | {"run": run, "format": STATE_FORMAT}), content)
            path.write_bytes(_seal(content.getvalue()) + content.getvalue())
        else:
            changed = damaged_archive(random, inner, trap)
            path.write_bytes(_seal(changed) + changed)
        with RunFolder(place, run, resume=True) as held:
            found = held.load()
        assert found is None or found["run"] == run
        return found

    return once


def weights(folder: Path) -> Once:
    """Files of a CLIP in OpenAI's layout."""
    trap, tensors = gadget(folder / "sprung"), {"visual.proj": torch.ones(4, 3), "text_projection": torch.zeros(3)}
    torch.save(tensors, folder / "x.pt")
    save_file(tensors, folder / "x.safetensors")
    contents = {ending: (folder / f"x{ending}").read_bytes() for ending in (".pt", ".safetensors")}

    def once(random: Random) -> object:
        ending = random.choice(list(contents))
        path = folder / f"damaged{ending}"
        path.write_bytes(damaged_archive(random, contents[ending], trap) if ending == ".pt" else damaged(random, contents[ending]))
        if random.random() < 0.2:
            return load_clip(str(path), device="cpu")
        return read_openai_weights(path)

    return once


def record_content() -> dict[str, Any]:
    """A run with two tests beside zero-shot CLIP."""
    environment, scores = results_folder.environment(), results_folder.scores(0.7)
    training = TrainingRecord(
        dataset="x", classes="base", shots=4, seed=1, draw_hash="a" * 64, images=8, template="a {}.", seconds=3.0, trained_parameters=5,
        options=({"section": "fit", "key": "lr", "value": 0.1, "source": "paper"},), history=({"step": 1.0, "loss": 0.5},),
        environment=environment, warnings=("w",),
    )  # fmt: skip
    tests = [
        TestRecord(
            key=f"{number:020d}", dataset="x", classes=classes, seen=seen, options={"alpha": 0.7}, template="a {}.", scores=scores,
            zero_shot=scores, seconds=1.0, environment=environment, warnings=("below",),
        )
        for number, (classes, seen) in enumerate((("base", True), ("novel", (False, True, False))))
    ]  # fmt: skip
    record = RunRecord(
        key="k" * 20, method="mmrl", title="MMRL", backbone="tiny", backbone_hash="f" * 16, training=training, tests=tuple(tests)
    )
    return record.model_dump(mode="json", by_alias=True)


def records(folder: Path) -> Once:
    """run.json, and the model card made of it."""
    whole, path = record_content(), folder / "run.json"
    card = {"method": "mmrl", "backbone": "tiny", "class_names": ["a"], "template": "a {}.", "version": "1", "options": {}}

    def once(random: Random) -> object:
        path.write_bytes(damaged_json(random, whole))
        record = read_record(folder)
        record.write(folder / "again.json")
        assert read_record(folder / "again.json") == record
        return model_card(card, record).encode()

    return once


def results(folder: Path) -> Once:
    """A results folder of which one file is damaged: looked at, and made a report of."""
    place = _results(folder / "results")
    files = {path: json.loads(path.read_text()) for path in sorted(place.rglob("*.json"))}
    (place / "locks").mkdir()
    run = next(iter(json.loads(next((place / "plans").iterdir()).read_text())["slots"]))["run"]
    held = place / "locks" / f"{run}.lock"
    kept = lock(held)
    told = {"pid": 1, "host": "here", "since": "2026-01-01T00:00:00.000+00:00", "died": []}

    def once(random: Random) -> object:
        assert kept
        path = random.choice([held] * 3 + list(files))
        try:
            path.write_bytes(damaged_json(random, files.get(path, told)))
            found = status(place)
            text = json.dumps(found.as_json(), allow_nan=False)
            assert text and all(sum(counts.values()) >= 0 for counts in found.studies.values())
            if random.random() < 0.3:
                return text
            with patch.object(os, "fsync"), patch.object(report, "Environment", Remembering):
                written = report.build_report(place, folder / "report")
            assert all(each.resolve().is_relative_to(folder / "report") for each in written)
            return written[0].read_text(encoding="utf-8")
        finally:
            path.write_bytes(json_bytes(files.get(path, told)))

    return once


class Remembering(jinja2.Environment):
    """Compiles a template once in the life of the process."""

    codes: ClassVar[dict[str, Any]] = {}

    def compile(self, source: str, *arguments: Any, **more: Any) -> Any:
        if source not in self.codes:
            self.codes[source] = super().compile(source, *arguments, **more)
        return self.codes[source]


def _results(place: Path) -> Path:
    """Two studies, small, with something in every part of the folder."""
    slots = [
        *results_folder.halves(datasets=("mini:digits",), seeds=(1, 2)),
        *results_folder.halves("tokens", ("mmrl",), variants=("1", "3"), datasets=("mini:digits",), seeds=(1,)),
    ]
    results_folder.make_results(place, slots)
    results_folder.fill(place, slots[:-2])
    results_folder.fail(place, slots[-1])
    row = results_folder.cost_row("mmrl", train_ms_per_image=3.0, shots=16, hm=0.5)
    results_folder.write_json(place / "cost.json", CostTable(rows=(row,)).model_dump(mode="json", by_alias=True))
    return place


def options(folder: Path) -> Once:
    """Class names in files, and what stands behind options of the command line."""
    keys = [*methods.get("mmrlpp").Options.model_fields, *engine.FitConfig.model_fields, "x", "", " lr "]
    lists: dict[str, bytes] = {".json": json_bytes(["cat", "red panda", "dog"]), ".txt": b"cat\nred panda\r\ndog\n"}

    def once(random: Random) -> object:
        way = random.randrange(4)
        if way == 0:
            path = folder / f"names{random.choice(list(lists))}"
            path.write_bytes(damaged(random, lists[path.suffix]) if random.random() < 0.6 else damaged_json(random, ["cat", "dog"]))
            names = check_names(class_names(str(path)))
            assert all(name.encode() for name in names)
            return names
        text = json_bytes(odd_value(random)).decode()
        if random.random() < 0.3:
            text = damaged(random, b"1,2,3").decode(errors="surrogateescape")
        if way == 1:
            return [parse(text) for parse in random.sample((parse_seeds, parse_shots, parse_values, class_names), 1)]
        found = parse_settings([f"{random.choice(keys)}={text}" for _ in range(random.choice((1, 1, 3)))])
        resolved = settings("mmrlpp", overrides=found)
        return methods.make_options(methods.get("mmrlpp"), resolved.method), engine.FitConfig(**resolved.fit)

    return once
