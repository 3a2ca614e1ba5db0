"""Checkpoints of the baselines' authors, made here in their formats: what is imported predicts the same, what does not fit is refused.

CoOp's, CoCoOp's, ProGrad's and MMA's files hold the part of the model that is trained, MaPLe's and PromptSRC's the whole model, both with
the embedded prompts of the classes; CLIP-LoRA's hold the changes by number, and what they change in notes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import engine, methods
from mmrl.clip import Clip
from mmrl.engine.untrusted import TensorFile
from mmrl.errors import UsageError
from mmrl.methods import Task
from tests.unit.colours import NAMES, clip_on_one_thread, noise, smallest_clip
from tests.unit.test_import_authors import authors_state, write

clip = pytest.fixture(scope="module")(clip_on_one_thread)
TEMPLATE = "a photo of a {}."


@dataclass
class Case:
    """A method, what its authors write in front of the class name, and what their file does not say."""

    method: str
    options: dict[str, Any]
    front: str
    said: dict[str, Any] = field(default_factory=dict)
    first: int = 0  # number of the first layer


CASES = {
    "coop": Case("coop", {"n_ctx": 3}, "X X X"),
    "coop_csc_front": Case("coop", {"n_ctx": 2, "csc": True, "class_token_position": "front"}, "X X", {"class_token_position": "front"}),
    "prograd": Case("prograd", {"n_ctx": 3, "init": "random"}, "X X X"),
    "kgcoop": Case("kgcoop", {"n_ctx": 4, "ctx_init": ""}, "a photo of a"),
    "cocoop": Case("cocoop", {"reduction": 5, "n_ctx": 4}, "a photo of a"),
    "tcp": Case("tcp", {"n_ctx": 3, "reduction": 2}, "X X X"),
    "tcp_texture": Case("tcp", {"n_ctx": 4, "template": "art of {}."}, "X X X X art of", {"template": "art of {}."}),
    "maple": Case("maple", {"n_ctx": 2, "depth": 2}, "a photo of a"),
    "maple_shallow": Case("maple", {"n_ctx": 5, "ctx_init": "", "depth": 1}, "X X X X X"),
    "promptsrc": Case("promptsrc", {"n_ctx_text": 3, "n_ctx_vision": 2}, "a photo of a", first=1),
    "promptsrc_shallow": Case(
        "promptsrc", {"depth_vision": 1, "depth_text": 2, "ctx_init": "one photo of a"}, "one photo of a", {"ctx_init": "one photo of a"}, 1
    ),
    "mma": Case("mma", {"adapter_start": 2, "adapter_dim": 4, "adapter_scale": 0.5}, "a photo of a", {"adapter_scale": 0.5}, 2),
    "mma_bare": Case("mma", {"adapter_start": 1, "adapter_dim": 3, "template": "{}."}, "", {"template": "{}."}, 1),
    "lora": Case("clip-lora", {"rank": 3, "alpha": 2.0}, ""),
    "lora_text": Case("clip-lora", {"encoder": "text", "position": "up", "matrices": "qv"}, ""),
    "lora_image": Case("clip-lora", {"encoder": "vision", "position": "half-bottom", "matrices": "k"}, ""),
}


def trained(clip: Clip, case: Case) -> methods.Method:
    method = methods.build(case.method, clip, case.options, seed=1, task=Task(NAMES, TEMPLATE))
    with torch.no_grad():
        for i, parameter in enumerate(method.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return method.eval()


def prompts(clip: Clip, front: str) -> tuple[Tensor, Tensor]:
    """Token ids (C, context) and their embeddings, as the authors make both."""
    ids, _ = clip.tokenize([f"{front} {name}." for name in NAMES])
    return ids, clip.text.words(ids).half()


def file_of(method: methods.Method, case: Case, path: Path) -> Path:
    if case.method == "clip-lora":
        return lora_file(method, path)
    full = authors_state(method, case.first)
    own = {name: full[name] for name in full if not name.startswith(("image_encoder.", "text_encoder."))}
    ids, words = prompts(method.clip, case.front)
    if case.method == "mma":
        alone = {name.removeprefix("adapter_learner."): value for name, value in own.items()}
        return write(path, {"token_embedding": words, "tokenized_prompts": ids, **alone}, path.with_name("executed"))
    n = own["prompt_learner.ctx"].shape[-2]
    parts = {"token_prefix": words[:, :1], "token_suffix": words[:, 1 + n :]}
    if case.method in ("maple", "promptsrc"):
        full |= {f"prompt_learner.{name}": value for name, value in parts.items()}
        full["logit_scale"] = torch.tensor(4.6)
        if case.method == "promptsrc":
            full["prompt_learner.ZS_image_encoder.proj"] = full["image_encoder.proj"]
        return write(path, full, path.with_name("executed"))
    alone = {name.removeprefix("prompt_learner."): value for name, value in own.items()}
    if case.method == "kgcoop":  # tensors of which its authors' code makes nothing
        alone |= {"bias_vectors": torch.ones(1, 9), "meta_net.linear1.weight": torch.ones(9, 9), "meta_net.linear1.bias": torch.ones(9)}
    return write(path, parts | alone, path.with_name("executed"))


def lora_file(method: methods.Method, path: Path, **notes: Any) -> Path:
    """Layers numbered through, those of the text first."""
    weights: dict[str, Any] = {}
    options, state = method.options.model_dump(), method.state_dict()
    for tower in ("text", "visual"):
        mine = {name: value for name, value in state.items() if name.startswith(f"{tower}.")}
        begin, count = len(weights), len(next(iter(mine.values()))) if mine else 0
        for i in range(count):
            weights[f"layer_{begin + i}"] = {
                f"{part}_proj": {f"w_lora_{m}": mine[f"{tower}.{part}.{m}"][i].clone() for m in "AB"} for part in options["matrices"]
            }
    metadata = {"r": options["rank"], "alpha": options["alpha"], "params": list(options["matrices"])}
    metadata |= {key: options[key] for key in ("encoder", "position")} | notes
    torch.save({"weights": weights, "metadata": metadata}, path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_what_is_imported_predicts_the_same(clip: Clip, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    method = trained(clip, case)
    path = file_of(method, case, tmp_path / "model.pth.tar-10")
    asked = {"method": case.method} if case.method in ("coop", "prograd") else {}
    engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip, options=case.said, **asked)
    assert not (tmp_path / "executed").exists()
    loaded, config = engine.load_adapter(tmp_path / "out", clip)
    assert (config.method, config.class_names) == (case.method, NAMES)
    for key, value in method.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    images = noise(1)[0][0]
    for names in (NAMES, NAMES[1:3]):
        with torch.no_grad():
            a, b = (m.logits(images, m.head(m.class_list(names, TEMPLATE)), True) for m in (method, loaded))
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_refused(clip: Clip, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    method = trained(clip, case)
    path = file_of(method, case, tmp_path / "file")
    asked = {"method": case.method, "options": case.said, "clip": clip, "classes": NAMES}

    def attempt(message: str, **arguments: Any) -> None:
        with pytest.raises(UsageError, match=message):
            engine.import_authors(path, tmp_path / "out", **{**asked, **arguments})
        assert not (tmp_path / "out").exists()

    attempt("unknown option", options={**case.said, "bta": 1})
    if name != "lora_image":
        attempt("made with another backbone", clip=smallest_clip(text_width=64))
    if case.method != "clip-lora":
        attempt("was trained on 4 classes, and 3 names are given", classes=NAMES[:3])
        attempt("class 2 of 4 is 'blue' here", classes=[NAMES[i] for i in (0, 2, 1, 3)])
        attempt("made with another backbone", clip=smallest_clip(seed=3))
    for key in ("n_ctx", "n_ctx_text", "adapter_start", "rank"):
        if key in type(method.options).model_fields:
            attempt(f"{key} is 7, but the tensors of the checkpoint give", options={**case.said, key: 7})


def test_one_file_of_several_methods(clip: Clip, tmp_path: Path) -> None:
    case = CASES["coop"]
    path = file_of(trained(clip, case), case, tmp_path / "file")
    with pytest.raises(UsageError, match=r"may be of coop or .*prograd.*say which \(--method\)"):
        engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip)
    with pytest.raises(UsageError, match="unknown method with checkpoints that can be imported 'tip-adapter'"):
        engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip, method="tip-adapter")
    with pytest.raises(UsageError, match=r"none of the methods that can be imported \(maple\)"):
        engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip, method="maple")
    state = dict(TensorFile(path)) | {"extra": torch.zeros(1)}
    write(path, state, tmp_path / "executed")
    with pytest.raises(UsageError, match="Beside the tensors of coop it has 'extra', of something else"):
        engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip)


def test_sizes_tell_methods_apart_that_have_the_same_names(clip: Clip, tmp_path: Path) -> None:
    for name in ("cocoop", "tcp"):
        path = file_of(trained(clip, CASES[name]), CASES[name], tmp_path / name)
        assert engine.import_authors(path, tmp_path / f"{name}-out", classes=NAMES, clip=clip)[1].method == name
        other = {"cocoop": "tcp", "tcp": "cocoop"}[name]
        with pytest.raises(UsageError, match="its meta-net puts out"):
            engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip, method=other)
    one = Case("tcp", {"n_ctx": 1}, "X")  # a meta-net of one token fits both
    path = file_of(trained(clip, one), one, tmp_path / "one")
    with pytest.raises(UsageError, match="may be of cocoop or tcp"):
        engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip)


def test_other_words_around_the_names(clip: Clip, tmp_path: Path) -> None:
    """MaPLe's file says what it was trained with; the options given do not."""
    case = Case("maple", {"ctx_init": "one photo of a"}, "one photo of a")
    path = file_of(trained(clip, case), case, tmp_path / "file")
    engine.import_authors(path, tmp_path / "first", classes=NAMES, clip=clip)  # "of a" stands behind the context in both
    with pytest.raises(UsageError, match=r"class 1 of 4 is 'red' here, and its prompt 'this is one red.'.*\(ctx_init\)"):
        engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip, options={"ctx_init": "this is one"})


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"params": ["q", "o"]}, "matrices is 'qo'"),
        ({"position": "top1"}, "position is 'top1'"),
        ({"alpha": None}, "alpha"),
        ({"encoder": "vision"}, "changes more layers than the 2 that it says"),
        ({"position": "up"}, "changes more layers than the 2 that"),
    ],
)
def test_notes_of_clip_lora(clip: Clip, tmp_path: Path, notes: dict[str, Any], message: str) -> None:
    path = lora_file(trained(clip, CASES["lora"]), tmp_path / "file", **notes)
    with pytest.raises(UsageError, match=message):
        engine.import_authors(path, tmp_path / "out", classes=NAMES, clip=clip)
    text = lora_file(trained(clip, CASES["lora_text"]), tmp_path / "text", encoder="both")
    with pytest.raises(UsageError, match="is no clip-lora of all layers .* it lacks 'weights.layer_"):
        engine.import_authors(text, tmp_path / "out", classes=NAMES, clip=clip)


def test_a_dict_in_many_places_is_read_once(tmp_path: Path) -> None:
    one: dict[str, Any] = {"x": torch.zeros(2)}
    for _ in range(3):
        one = {f"{i}": one for i in range(300)}
    torch.save(one, tmp_path / "file")
    assert list(TensorFile(tmp_path / "file")) == ["0.0.0.x"]
    one["self"] = one
    torch.save({"y": torch.ones(1), "deep": one}, tmp_path / "file")
    assert list(TensorFile(tmp_path / "file")) == ["y"]
