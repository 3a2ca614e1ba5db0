"""Checkpoints of the authors' code, made here in their format: imported exactly, and nothing in them is executed."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.engine.guess import guess_method
from mmrl.engine.untrusted import TensorFile
from mmrl.errors import MmrlError, Notice, UsageError
from mmrl.methods.authors import from_authors
from mmrl.pickles import Call, Name, read_notes
from tests.unit.colours import NAMES, clip_on_one_thread, fresh, noise, smallest_clip

clip = pytest.fixture(scope="module")(clip_on_one_thread)
MADE_HERE = {"adapter_model.safetensors", "adapter_config.json", "README.md"}


def trained(clip: Clip, name: str) -> methods.Method:
    options = {"first_layer": 2, "first_text_layer": 1} | ({"layer_rank": 3, "projection_rank": 5} if name == "mmrlpp" else {})
    method = fresh(clip, name, **options)
    with torch.no_grad():
        for i, parameter in enumerate(method.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return method


def authors_state(method: methods.Method, first: int = 0) -> dict[str, Tensor]:
    """Their names, with layers from the number `first`; and the whole CLIP, in half precision, as theirs has it."""
    own, out = method.clip.model.state_dict(), OrderedDict[str, Tensor]()
    for name, value in own.items():
        side, _, rest = name.partition("visual.")
        out[f"text_encoder.{name}" if side else f"image_encoder.{rest}"] = value.half()
    for ours, theirs in method.authors_names.items():
        value = method.state_dict().get(ours)
        if value is None:  # as the options have it
            continue
        layers = enumerate(value, first) if "{i}" in theirs else [(0, value)]
        out.update({theirs.replace("{i}", str(i)): part.clone() for i, part in layers})
    return out


class Evil:
    """Pickles to a command that creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.target}'",)


def write(path: Path, state: dict[str, Tensor], target: Path) -> Path:
    """The file that Dassl's save_checkpoint writes: state_dict, epoch, optimizer, scheduler (an object), val_result."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    schedule = {"successor": scheduler, "last_epoch": 9, "evil": Evil(target)}
    content = {"state_dict": state, "epoch": 10, "optimizer": optimizer.state_dict(), "scheduler": schedule, "val_result": None}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["mmrl", "mmrlpp"])
def test_a_checkpoint_becomes_an_adapter(clip: Clip, tmp_path: Path, name: str) -> None:
    method, target = trained(clip, name), tmp_path / "executed"
    path = write(tmp_path / "model.pth.tar-10", authors_state(method), target)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    imported, config = engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip, options={"alpha": 0.6})
    assert not target.exists()
    found = imported.options.model_dump()
    shapes = {key: found[key] for key in ("rep_tokens", "rep_dim", "first_layer", "first_text_layer", "alpha")}
    assert shapes == {"rep_tokens": 2, "rep_dim": 8, "first_layer": 2, "first_text_layer": 1, "alpha": 0.6}
    if name == "mmrlpp":
        assert (found["layer_rank"], found["projection_rank"], found["beta"]) == (3, 5, 0.9)
    assert (config.method, config.class_names, config.template) == (name, NAMES, "a photo of a {}.")
    assert {file.name for file in (tmp_path / "out").iterdir()} == MADE_HERE
    loaded, _ = engine.load_adapter(tmp_path / "out", clip)
    for key, value in method.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    image, classes = noise(1)[0][0], method.class_list(NAMES, "a photo of a {}.")
    with torch.no_grad():
        a, b = (m.image_features(image).class_token @ m.text_features(classes).T for m in (method, loaded))
    assert torch.equal(a, b)


def test_the_trap_works(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    target = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(target)))  # noqa: S301
    assert target.exists()


def test_layers_start_at_any_number_and_none_is_left_out() -> None:
    class Some(methods.TwoTower):
        name = "some"
        authors_names: ClassVar = {"w": "net.{i}.weight", "b": "net.{i}.bias", "ctx": "learner.ctx"}

    class Less(Some):
        name = "less"
        authors_names: ClassVar = {"ctx": "learner.ctx"}

    tensors = {f"net.{i}.{part}": torch.full((2, 3), float(i)) for i in (10, 5, 7, 9, 6, 8) for part in ("weight", "bias")}
    tensors |= {"learner.ctx": torch.zeros(4), "image_encoder.net.0.weights": torch.zeros(1)}
    found = from_authors("some", Some.authors_names, tensors)
    assert found["w"].shape == (6, 2, 3) and found["w"][:, 0, 0].tolist() == [5, 6, 7, 8, 9, 10] and torch.equal(found["w"], found["b"])
    known: dict[str, type[methods.Method]] = {"less": Less, "some": Some}
    assert guess_method(tensors, known) is Some
    for lost in ("net.5.bias", "net.8.weight", "net.10.bias"):
        rest = {name: value for name, value in tensors.items() if name != lost}
        with pytest.raises(UsageError, match=f"no some of the authors' code: it has no tensor '{lost}'"):
            from_authors("some", Some.authors_names, rest)
        with pytest.raises(UsageError, match="Beside the tensors of less it has 'net"):
            guess_method(rest, known)
    both_lost = {name: value for name, value in tensors.items() if not name.startswith("net.7.")}
    with pytest.raises(UsageError, match="no tensor"):
        from_authors("some", Some.authors_names, both_lost)
    both = {"less": Less, "same": Less}
    with pytest.raises(UsageError, match="may be of less or same, .* say which"):
        guess_method({"learner.ctx": torch.zeros(4)}, both)
    assert guess_method({"learner.ctx": torch.zeros(4)}, {"same": Less}) is Less


@pytest.mark.parametrize("protocol", range(6))
def test_notes_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    if protocol > pickle.HIGHEST_PROTOCOL:
        pytest.skip("not in this Python")
    shared = ["x"]
    plain = {"a": [1, -2**40, 2.5, None, True, "é"], 3: (shared, shared, (), (1, 2, 3, 4)), "b": {"c": b"bytes"}, "o": OrderedDict(k=1)}
    target = tmp_path / "executed"
    found = read_notes(io.BytesIO(pickle.dumps({**plain, "evil": Evil(target), "set": {5}}, protocol)))
    evil, listed = found.pop("evil"), found.pop("set")
    if protocol < 3:
        assert isinstance(found["b"].pop("c"), (Call, bytes))
        plain["b"] = {}
    assert found["a"] == plain["a"] and found[3] == plain[3] and found["b"] == plain["b"]
    assert found[3][0] is found[3][1]
    assert isinstance(evil, Call) and evil.what in (Name("posix", "system"), Name("nt", "system")) and str(target) in evil.arguments[0]
    assert listed == [5] or isinstance(listed, Call)
    assert not target.exists()


def test_tensors_are_read_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    state = {"whole": base.view(2, 3, 4), "part": base.view(4, 6)[1:, ::2].T, "half": base.half(), "int": base.long(), "none": base[:0],
             "parameter": torch.nn.Parameter(base), "one": torch.tensor(3.0), "bf": base.bfloat16()}  # fmt: skip
    torch.save(state, tmp_path / "x.pt")
    found = TensorFile(tmp_path / "x.pt")
    assert set(found) == set(state) and len(found) == len(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def rewritten(path: Path, change: dict[bytes, bytes]) -> Path:
    """The archive with bytes of its pickle replaced."""
    out = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            for a, b in change.items():
                if name.endswith("data.pkl"):
                    assert a in content
                    content = content.replace(a, b)
            new.writestr(name, content)
    return out


@pytest.mark.parametrize(("size", "message"), [(b"K\x0b", "more values than its storage"), (b"J\xff\xff\xff\xff", "not made of sizes")])
def test_a_shape_beyond_the_storage_is_refused(tmp_path: Path, size: bytes, message: str) -> None:
    torch.save({"x": torch.zeros(10)}, tmp_path / "x.pt")
    path = rewritten(tmp_path / "x.pt", {b"K\x00K\n\x85": b"K\x00" + size + b"\x85"})
    with pytest.raises(MmrlError, match=f"tensor 'x' of .* is damaged: .*{message}"):
        TensorFile(path)["x"]


def test_files_that_are_no_checkpoint(clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "file"

    def attempt(content: bytes | None, message: str, kind: type[MmrlError] = MmrlError) -> None:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(kind, match=message):
            engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip)
        assert not (tmp_path / "out").exists()

    attempt(None, "cannot read .*No such file")
    attempt(b"not an archive", "cut, or not a file of torch.save")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    whole = path.read_bytes()
    attempt(None, "holds none of the methods that can be imported", UsageError)
    attempt(whole[: len(whole) // 2], "cut, or not a file of torch.save")
    torch.save([1, 2], path)
    attempt(None, "holds no named tensors")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    attempt(None, "has no data.pkl")


def test_names_that_stand_twice_are_told_apart(clip: Clip, tmp_path: Path) -> None:
    """The authors' 1,000 ImageNet names have some twice."""
    path = write(tmp_path / "model.pth.tar-10", authors_state(trained(clip, "mmrl")), tmp_path / "executed")
    with pytest.warns(Notice, match=r"1 names stand again, and are told apart by a number that is not spoken: Crane \(2\)"):
        _, config = engine.import_authors(path, tmp_path / "out", classes=["crane", "missile", "Crane"], clip=clip, dataset="imagenet")
    assert config.class_names == ("crane", "missile", "Crane (2)") and config.dataset == "imagenet"
    assert engine.load_adapter(tmp_path / "out", clip)[1] == config


def test_what_does_not_fit_is_refused(clip: Clip, tmp_path: Path) -> None:
    method = trained(clip, "mmrl")
    path = write(tmp_path / "model.pth.tar-10", authors_state(method), tmp_path / "executed")

    def attempt(message: str, **arguments: Any) -> None:
        with pytest.raises(UsageError, match=message):
            engine.import_authors(path, tmp_path / "out", **{"classes": NAMES, "clip": clip, **arguments})

    attempt("rep_tokens is 4, but the tensors of the checkpoint give 2", options={"rep_tokens": 4})
    attempt("unknown option of mmrl 'beta'", options={"beta": 0.5})
    attempt("number 2 of 2 in the class list is blank", classes=["a", " "])
    attempt("made with another backbone than .* 'image_encoder", clip=smallest_clip(seed=3))
    del_one = authors_state(method)
    del del_one["representation_learner.compound_rep_tokens_r2tproj.0.bias"]
    write(path, del_one, tmp_path / "executed")
    attempt("none of the methods")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "run.json").write_text("{}")
    attempt("holds another run already")
