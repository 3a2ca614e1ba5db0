"""RPO against its plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import UsageError
from mmrl.methods.rpo import RPO
from tests.oracle.methods.compare import NAMES, TEMPLATE, batch, disturbed, same, same_logits, same_step, small_clip_in_float64
from tests.oracle.methods.rpo import plain


def rpo(options: dict[str, Any], names: tuple[str, ...] = NAMES, template: str | tuple[str, ...] = TEMPLATE) -> RPO:
    method = disturbed("rpo", options, names, template)
    assert isinstance(method, RPO)
    return method


def compare(
    options: dict[str, Any],
    names: tuple[str, ...] = NAMES,
    template: str | tuple[str, ...] = TEMPLATE,
    memory: float | None = None,
) -> None:
    method = rpo(options, names, template)
    classes = method.class_list(names, template, memory_gib=memory)
    slow, (images, labels) = plain(method, names, template), batch(len(names))
    loss = method.loss(images, labels, classes)
    same_step(method, slow, loss.total, slow.loss(images, labels))
    same_logits(method, slow, loss.logits, images)
    same("text features", method.text_features(classes), slow.text_features())
    same("image features", method.image_features(images), slow.image_features(images))
    same_logits(method, slow, method.eval().logits(images, method.head(classes), True), images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_prompts": 1},
        {"n_prompts": 4},
        {"n_prompts": 30},  # more than the small CLIP's text tower has positions
        {"n_prompts": 3, "keep_underscores": False},
        {"n_prompts": 2, "template": "{}"},
    ],
)
def test_equal(options: dict[str, Any]) -> None:
    compare(options)


def test_equal_with_the_data_set_s_own_prompts() -> None:
    compare({"n_prompts": 2, "template": None})
    compare({"n_prompts": 2, "template": None}, template=("{} texture.", "a photo of a {}, seen from above."))


def test_equal_with_alike_names_one_name_and_in_chunks() -> None:
    compare({"n_prompts": 3}, names=("of", "of of", "of a"))  # prompts that end where another one goes on
    compare({"n_prompts": 3}, memory=1e-9)
    alone = rpo({}, ("cat",))
    same("text features", alone.text_features(alone.class_list(("cat",), TEMPLATE)), plain(alone, ("cat",), TEMPLATE).text_features())


def test_underscores_stay() -> None:
    method = rpo({})
    assert method.class_list(("one_of", "a_b (2)"), TEMPLATE).fed.texts == ("a photo of a one_of.", "a photo of a a_b.")
    assert rpo({"keep_underscores": False}).class_list(("one_of",), TEMPLATE).fed.texts == ("a photo of a one of.",)
    classes = method.class_list(NAMES, TEMPLATE)
    assert torch.equal(classes.zero_shot, method.clip.class_list(NAMES, TEMPLATE).zero_shot)


def test_what_clip_computes_stays_as_it_is() -> None:
    """The prompts only read: beside them stand CLIP's own features, which no gradient reaches."""
    method = rpo({"n_prompts": 3})
    classes = method.class_list(NAMES, "a photo of a {}.")
    features = method.clip.encode_prompts(classes.fed, {})
    kept, gradients = [], []
    for layer in method.clip.text.layers[1:]:
        kept.append(layer.block.ln_1.register_forward_hook(lambda _, args, out: gradients.append((args[0].shape, args[0].requires_grad))))
    method.text_features(classes)
    for hook in kept:
        hook.remove()
    same("class features", features, method.clip.encode_text(classes.fed.texts))
    assert {shape[1] for shape, needs in gradients if needs} == {3, 4}  # the prompts; in the last layer beside the end of text
    assert {shape[1] for shape, needs in gradients if not needs} == {5, sum(classes.fed.lengths)}


def test_where_the_prompts_start() -> None:
    clip = small_clip_in_float64()
    method = methods.build("rpo", clip, seed=0)
    assert isinstance(method, RPO) and {name: tuple(value.shape) for name, value in method.state_dict().items()} == {
        "text_prompt": (24, 32),
        "image_prompt": (24, 64),
    }
    ids, end = clip.tokenize(["anything"])
    for prompt, token in ((method.text_prompt, clip.text.words(ids[0, end[0]])), (method.image_prompt, clip.model.visual.class_embedding)):
        assert torch.allclose((prompt.double() - token).norm(dim=-1), torch.full((24,), 0.1, dtype=torch.float64), atol=1e-6)
        assert len(prompt.detach()[:, 0].unique()) == 24


def test_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="'a photo' of the option 'template' must have exactly one {}"):
        methods.build("rpo", small_clip_in_float64(), {"template": "a photo"})
    with pytest.raises(UsageError, match="n_prompts is 0: input should be greater than or equal to 1"):
        methods.build("rpo", small_clip_in_float64(), {"n_prompts": 0})


def test_in_bfloat16(small_clip: Clip, images: Tensor) -> None:
    method = methods.build("rpo", small_clip, seed=0)
    classes, labels = method.class_list(NAMES, TEMPLATE), torch.tensor([2, 0, 1])
    exact = method.loss(images, labels, classes).total
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(images, labels, classes)
    loss.total.backward()
    assert loss.logits.dtype == torch.float32 and abs(float(loss.total.detach() - exact.detach())) < 0.1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.parameters())
