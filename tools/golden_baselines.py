"""Replay of the methods that the paper compares with: a folder whose cases have `hyper`, `losses` and the authors' tensor names.

A case belongs to the method that its name begins with; what follows is the variant. The CLIP lies in ../mmrl/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.methods import Loss, Task
from mmrl.methods.clip_lora import CLIPLoRA
from mmrl.methods.cocoop import CoCoOp
from mmrl.methods.plot import PLOT, transport_plan
from mmrl.methods.promptsrc import TEACHER_TEMPLATES, PromptSRC
from mmrl.methods.tip_adapter import TipAdapter
from mmrl.templates import fill
from tools.golden_dropout import replayed_dropout
from tools.golden_judge import Errors, GoldenError, Tensors, count, load, note, ours, value
from tools.golden_replay import Replay, differentiate, stepping

Hyper = Mapping[str, Any]
TEMPLATE = "{} texture."  # CoOp's, of the golden data set


def method_of(case: str) -> str | None:
    """The registered method whose name begins the name of a case, as in tip_adapter_f_cosine or cliplora_drop; None if we have none."""
    known = {name.replace("-", ""): name for name in methods.names()}
    words = re.split(r"[_-]", case)
    return next((known[found] for end in range(len(words), 0, -1) if (found := "".join(words[:end])) in known), None)


# ---- hyper-parameters ----


RENAMED: dict[str, dict[str, str]] = {  # our option -> theirs, where the names differ
    "plot": {"n_prompts": "N", "sinkhorn_eps": "eps", "sinkhorn_max_iter": "max_iter", "sinkhorn_threshold": "thresh"},
    "mma": {"template": "prompt"},
    "clip-lora": {"rank": "r", "dropout": "dropout_rate", "template": "prompt"},
    "maple": {"depth": "prompt_depth"},
    "prograd": {"teacher_template": "template", "prograd_lambda": "LAMBDA", "temperature": "T"},
    "promptsrc": {"teacher_templates": "templates_used"},
}


def _context(hyper: Hyper, tensors: Tensors) -> dict[str, Any]:
    """Whose context it is follows from its shape: the authors' code makes it class-specific in fewer cases than `csc` says."""
    shape = tensors["init.prompt_learner.ctx"].shape
    sets = "N" in hyper  # PLOT's, (N, n, d) or (C, N, n, d)
    return {"csc": len(shape) == (4 if sets else 3)} | ({"n_prompts": shape[-3]} if sets else {})


def _reduction(hyper: Hyper, tensors: Tensors) -> dict[str, Any]:
    found = re.search(r"embed\s*//\s*([0-9]+)", str(hyper.get("meta_net", "")))
    return {"reduction": int(found[1])} if found else {}


def _lora(hyper: Hyper, tensors: Tensors) -> dict[str, Any]:
    """Matrices "q,k,v" and a position "all (12+12 blocks)". Without dropout the authors' code stops gradients at the changes' inputs."""
    words = {option: str(hyper[theirs]) for option, theirs in (("matrices", "params"), ("position", "position")) if theirs in hyper}
    found: dict[str, Any] = {"detach_input": hyper.get("dropout_rate") == 0}
    found |= {"position": words["position"].split()[0]} if "position" in words else {}
    return found | ({"matrices": "".join(part for part in "qkvo" if part in words["matrices"])} if "matrices" in words else {})


def _prograd(hyper: Hyper, tensors: Tensors) -> dict[str, Any]:
    return {"init": "template" if "template" in str(hyper.get("ctx_init", "")) else "random"}


DERIVED: dict[str, Callable[[Hyper, Tensors], dict[str, Any]]] = {
    "coop": _context,
    "plot": _context,
    "cocoop": _reduction,
    "clip-lora": _lora,
    "prograd": _prograd,
}


def options_of(method: str, case: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Our options of a case: entries of its `hyper` under our names, or as the tables above have them."""
    hyper: Hyper = value(case, "hyper")
    fields = methods.get(method).Options.model_fields
    found = {key: hyper[key] for key in fields if key in hyper}
    found |= {own: hyper[theirs] for own, theirs in RENAMED.get(method, {}).items() if theirs in hyper}
    found |= DERIVED[method](hyper, tensors) if method in DERIVED else {}
    if str(found.get("ctx_init", "")).startswith("random"):
        found["ctx_init"] = ""
    return {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in found.items()}


def template_of(case: Mapping[str, Any]) -> str:
    """The data set's prompt, which tells nothing but for zero-shot features."""
    template = str(value(case, "hyper").get("template", ""))
    return template if template.count("{}") == 1 else TEMPLATE


# ---- what single methods have ----


class CLIPLoRAReplay(Replay):
    def dropout(self) -> AbstractContextManager[None]:
        if not self.tensors.behind("dropout_keep."):
            return nullcontext()
        assert isinstance(self.method, CLIPLoRA)
        return replayed_dropout(self.method, self.tensors, self.classes)

    def before(self) -> None:
        super().before()
        prompts = fill(self.case["hyper"]["prompt"], self.classes.names)
        self.check("zero-shot features", "zero_shot_text_features", self.clip.encode_text(prompts))


class ProGradReplay(Replay):
    """The projection has its own numbers: the teacher's loss of every step, and both gradients of step 1."""

    def before(self) -> None:
        super().before()
        teacher = self.classes.zero_shot if self.classes.teacher is None else self.classes.teacher
        self.check("zero-shot features", "text_features_zero_shot", teacher)
        image = self.clip.encode_image(self.images(0))
        self.check("zero-shot logits", "zs_logits", self.method.logit_scale * image @ teacher.T)

    def loss(self, step: int, loss: Loss) -> None:
        super().loss(step, loss)
        if "kl_losses" in self.case:
            note(self.errors, "teacher's losses", loss.terms["kl"], self.case["kl_losses"][step])
        if step == 0:
            again, differ = self.method.loss(self.images(0), self.tensors["labels"][0], self.classes), differentiate(self.method)
            for term, prefix in (("ce", "grad_xe."), ("kl", "grad_kl.")):
                if self.tensors.behind(prefix):
                    golden = ours(self.method, self.tensors, prefix)
                    for (key, _), found in zip(self.method.named_parameters(), differ(again.terms[term], retain_graph=True), strict=True):
                        assert found is not None
                        note(self.errors, "both gradients", found, golden[key])


class CoCoOpReplay(Replay):
    def before(self) -> None:
        super().before()
        assert isinstance(self.method, CoCoOp)
        image = self.clip.encode_image(self.images(0))
        self.check("features", "image_features", image)
        self.check("features", "text_features", self.method.conditional_features(image, self.classes.fed))


class PLOTReplay(Replay):
    """Patches, plans and what they carry."""

    def before(self) -> None:
        super().before()
        assert isinstance(self.method, PLOT)
        o, scale = self.method.options, self.method.logit_scale
        text, image = self.method.text_features(self.classes), self.method.image_features(self.images(0))
        self.check("features", "text_features", text.prompts)
        self.check("features", "image_features", image.patches.transpose(0, 1))
        self.check("features", "image_feature_pool", image.pooled)
        self.check("logits", "pooled_logits", scale * image.pooled @ text.pooled.T)
        similarity = torch.einsum("bmd,ncd->bcmn", image.patches, text.prompts).flatten(0, 1)
        plan = transport_plan(similarity, eps=o.sinkhorn_eps, max_iter=o.sinkhorn_max_iter, threshold=o.sinkhorn_threshold)
        self.check("transport", "sim", similarity)
        self.check("transport", "transport_plan", plan)
        self.check("transport", "sim_op", (plan * similarity).sum((1, 2)).unflatten(0, (len(image.pooled), -1)))


class PromptSRCReplay(Replay):
    """The frozen side, the parts of the loss, and the logits before the prompts are averaged."""

    def before(self) -> None:
        super().before()
        assert isinstance(self.method, PromptSRC)
        teacher, image = self.method.teacher(self.classes), self.clip.encode_image(self.images(0))
        self.check("zero-shot features", "fixed_text_features", teacher)
        self.check("zero-shot features", "zero_shot_image_features", image)
        self.check("zero-shot logits", "zero_shot_logits", self.method.logit_scale * image @ teacher.T)
        for key, templates in (("embeddings", self.method.options.teacher_templates), ("embeddings_all60", TEACHER_TEMPLATES)):
            if f"fixed_text_{key}" in self.tensors:
                each = self.clip.encode_text(fill(templates, self.classes.names), normalise=False)
                self.check("zero-shot features", f"fixed_text_{key}", each.unflatten(0, (len(templates), -1)).mean(0))

    def loss(self, step: int, loss: Loss) -> None:
        super().loss(step, loss)
        weights = self.method.options.model_dump()
        parts = {"ce": ("ce", ""), "l1_text": ("reg_text", "text"), "l1_image": ("reg_image", "image"), "kl": ("kl", "logit")}
        for part, golden in self.case.get("step1_loss_parts", {}).items() if step == 0 else ():
            term, weight = parts[re.sub("_x[0-9.]+$", "", part)]  # the weight is in the name, as in l1_text_x25
            note(self.errors, "losses", loss.terms[term] * weights.get(f"{weight}_loss_weight", 1), golden)

    def trained(self) -> None:
        logits = self.method.logits(self.images(0), self.method.head(self.classes), seen=True)
        self.check("evaluation logits", "eval_logits_before_gpa", logits)


class TipAdapterReplay(Replay):
    """The cache, its logits, and the search on the validation images."""

    @classmethod
    def task(cls, names: tuple[str, ...], template: str, tensors: Tensors, clip: Clip) -> Task:
        dtype = next(clip.model.parameters()).dtype

        def features(part: str, views: int = 0) -> tuple[Tensor, Tensor]:
            if part == "train" and views != len(tensors["cache_images"]):
                raise GoldenError(f"augment_epoch is {views}, but the file has {len(tensors['cache_images'])} views")
            images = tensors["cache_images"] if part == "train" else tensors["val_images"].unsqueeze(0)
            found = clip.encode_image(images.flatten(0, 1).to(dtype), normalise=False).unflatten(0, images.shape[:2])
            return found, tensors["cache_labels" if part == "train" else "val_labels"]

        return Task(names, template, len(tensors["cache_labels"]), len(tensors["val_labels"]), features=features)

    def before(self) -> None:
        method, test = self.method, self.test_images()
        assert isinstance(method, TipAdapter)
        head = method.head(self.classes)
        self.check("features", "clip_weights", head.text.T)
        self.check("features", "test_features", self.clip.encode_image(test))
        self.check("features", "val_features", self.clip.encode_image(self.tensors["val_images"].to(self.dtype)))
        again = methods.build(method.name, self.clip, method.options, task=self.given).to(self.dtype)  # as its own `setup` makes it
        assert isinstance(again, TipAdapter)
        made = again.head(self.classes)
        self.check("cache", "cache_keys", made.keys.T)
        self.check("cache", "cache_values", made.values)
        if method.trainable:
            super().before()
        else:
            val = self.tensors["val_images"].to(self.dtype)
            self.check("logits", "logits", method.logits(test, head, seen=True))
            self.check("logits", "val_logits", method.logits(val, head, seen=True))
            self.check("zero-shot logits", "zero_shot_logits", method.logit_scale * self.clip.encode_image(test) @ head.text.T)
            self.check("zero-shot logits", "val_zero_shot_logits", method.logit_scale * self.clip.encode_image(val) @ head.text.T)

    def after(self) -> None:
        method, test = self.method, self.test_images()
        assert isinstance(method, TipAdapter)
        self.check("evaluation logits", "eval_logits", method.logits(test, method.head(self.classes), seen=True))
        method.finish(self.given)
        if "searched_beta_alpha" in self.case:
            for found, golden in zip((method.beta, method.alpha), self.case["searched_beta_alpha"]):
                note(self.errors, "search", found, golden)
        self.check("search", "searched_test_logits", method.logits(test, method.head(self.classes), seen=True))

    def test_images(self) -> Tensor:
        """Of the first steps, as many as the file has features of."""
        return self.tensors["images"].flatten(0, 1)[: len(self.tensors["test_features"])].to(self.dtype)


REPLAYS: dict[str, type[Replay]] = {
    "clip-lora": CLIPLoRAReplay,
    "cocoop": CoCoOpReplay,
    "plot": PLOTReplay,
    "prograd": ProGradReplay,
    "promptsrc": PromptSRCReplay,
    "tip-adapter": TipAdapterReplay,
    "tip-adapter-f": TipAdapterReplay,
}



def start(name: str, case: Mapping[str, Any], tensors: Tensors, clip: Clip, classnames: Sequence[str]) -> Replay:
    """The method of a case with its initial parameters, in the precision of `clip`."""
    method_name = method_of(name)
    if method_name is None:
        raise GoldenError(f"there is no method for '{name}' here")
    kind, template, dtype = REPLAYS.get(method_name, Replay), template_of(case), next(clip.model.parameters()).dtype
    task = kind.task(tuple(classnames), template, tensors, clip)
    method = methods.build(method_name, clip, options_of(method_name, case, tensors), seed=0, task=task).to(dtype)
    load(method, tensors)
    if isinstance(case.get("trainable"), int) and case["trainable"] != count(method):
        raise GoldenError(f"{count(method)} trainable parameters here, {case['trainable']} in the file")
    return kind(case, tensors, clip, method, method.class_list(classnames, template), task, {})


def replay(name: str, case: Mapping[str, Any], tensors: Tensors, clip: Clip, classnames: Sequence[str]) -> Errors:
    """Errors of one case by group."""
    run = start(name, case, tensors, clip, classnames)
    with run.dropout():
        with torch.no_grad():
            run.before()
        if run.method.trainable:
            run.train(stepping(case))
    run.method.eval()
    with torch.no_grad():
        run.after()
    return run.errors
