"""A folder in the format of the golden baselines, made with the plain forms in float64: other variants than the authors' numbers have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip, load_clip
from mmrl.methods import Task
from tests.oracle.methods import plain_of, tip_adapter
from tests.oracle.methods.promptsrc import averaged

NAMES = ["owl", "great_white shark", "x"]
TEMPLATE = "{} texture."
STEPS, DEPTH = 3, 4
SGD = {"class": "SGD", "lr": 0.02, "momentum": 0.9, "dampening": 0, "weight_decay": 0.0005, "nesterov": False}
SGD_TEXT = {"optimizer": "SGD momentum 0.9 weight_decay 5e-4 dampening 0 no nesterov", "lr": 0.02}
ADAMW_TEXT = {"optimizer": "AdamW betas (0.9,0.999) weight_decay 1e-2 eps 1e-6", "lr": 0.002}
ADAM = {"class": "Adam", "lr": 0.002, "betas": [0.9, 0.999], "eps": 0.001, "weight_decay": 0.0005}
ADAMW = {"class": "AdamW", "lr": 0.002, "eps": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.01}


@dataclass(frozen=True)
class Variant:
    """A method with our options, the same in the authors' words, and more that golden.json says of the case."""

    method: str
    options: dict[str, Any]
    hyper: dict[str, Any]
    first_layer: int = 0  # number in the authors' names of the first layer that has tensors
    more: dict[str, Any] = field(default_factory=lambda: {"optimizer": SGD})


VARIANTS = {
    "coop_front": Variant(
        "coop", {"n_ctx": 3, "class_token_position": "front"}, {"n_ctx": 3, "csc": False, "class_token_position": "front", "ctx_init": ""}
    ),
    "coop_csc_middle": Variant(
        "coop", {"n_ctx": 4, "csc": True, "class_token_position": "middle"}, {"n_ctx": 4, "csc": True, "class_token_position": "middle"}
    ),
    "cocoop_wide": Variant(
        "cocoop", {"reduction": 5, "n_ctx": 3}, {"n_ctx": 3, "ctx_init": "a photo of", "meta_net": "Linear(embed, embed//5) -> ReLU"}
    ),
    "plot_csc": Variant(  # whose contexts the authors' code shares among the classes all the same
        "plot",
        {"n_prompts": 3, "n_ctx": 2, "sinkhorn_eps": 0.2, "sinkhorn_max_iter": 4, "sinkhorn_threshold": 1e-9},
        {"N": 3, "n_ctx": 2, "eps": 0.2, "max_iter": 4, "thresh": 1e-9, "csc": True, "class_token_position": "end"},
    ),
    "prograd_half": Variant(
        "prograd",
        {"n_ctx": 5, "teacher_template": "a picture of {}.", "prograd_lambda": 0.5, "temperature": 2.0},
        {"n_ctx": 5, "ctx_init": "template of the dataset", "LAMBDA": 0.5, "T": 2.0, "template": "a picture of {}."},
    ),
    "kgcoop_csc_front": Variant(
        "kgcoop",
        {"n_ctx": 3, "ctx_init": "", "csc": True, "class_token_position": "front", "teacher_template": "a {} of old.", "reg_weight": 2.5},
        {"n_ctx": 3, "ctx_init": "random normal std 0.02", "class_token_position": "front", "zero_shot_template": "a {} of old.", "W": 2.5},
    ),
    "tcp_ucf": Variant(
        "tcp",
        {"n_ctx": 3, "template": "a person doing {}.", "teacher_template": "a person doing {}.", "insert_layer": 1, "insert_weight": 0.75,
         "reduction": 2, "reg_weight": 3.0},
        {"n_ctx": 3, "ctx_init": "random normal std 0.02", "insert_before_block_index": 1, "insert_weight": 0.75, "loss_weight": 3.0,
         "zero_shot_template": "a person doing {}.", "prompt_template": "a photo of a person doing {}.",
         "meta_net": "Linear(embed, embed//2) -> QuickGELU -> Linear(embed//2, 3*text width)"},
        more={"optimizer": ADAM},
    ),
    "maple_depth3": Variant(
        "maple", {"n_ctx": 3, "depth": 3}, {"n_ctx": 3, "ctx_init": "a photo of a", "prompt_depth": 3, **SGD_TEXT}, more={}
    ),
    "mma-2-3": Variant(
        "mma",
        {"adapter_start": 2, "adapter_end": 3, "adapter_dim": 8, "adapter_scale": 0.5, "template": "a {}, drawn."},
        {"adapter_start": 2, "adapter_end": 3, "adapter_dim": 8, "adapter_scale": 0.5, "prompt": "a {}, drawn.", **SGD_TEXT},
        first_layer=2,
        more={},
    ),
    "cliplora_text_up": Variant(
        "clip-lora",
        {"rank": 3, "alpha": 2.0, "dropout": 0.0, "matrices": "qv", "encoder": "text", "position": "up", "detach_input": True},
        {"r": 3, "alpha": 2, "dropout_rate": 0.0, "params": "q,v", "encoder": "text", "position": "up (2 blocks)",
         "prompt": "a photo of a {}.", **ADAMW_TEXT},
        first_layer=2,
        more={},
    ),
    "promptsrc_shallow": Variant(
        "promptsrc",
        {"n_ctx_text": 2, "n_ctx_vision": 3, "depth_text": 1, "depth_vision": 3, "gpa_mean": 2.0, "text_loss_weight": 5.0,
         "teacher_templates": ("a {}.", "no {}.")},
        {"n_ctx_text": 2, "n_ctx_vision": 3, "ctx_init": "a photo of a", "depth_text": 1, "depth_vision": 3, "text_loss_weight": 5,
         "image_loss_weight": 10, "gpa_mean": 2, "gpa_std": 1, "epochs": 3, "steps_per_epoch": 1, "templates_used": ["a {}.", "no {}."],
         **SGD_TEXT},
        first_layer=1,
        more={},
    ),
    "metaprompt_words": Variant(
        "metaprompt",
        {"n_ctx_text": 3, "n_ctx_vision": 1, "depth": 3, "meta_step": 2.0, "vision_between": "still",
         "frozen_templates": ("a {}", "{}, drawn")},
        {"n_ctx_text": 3, "n_ctx_vision": 1, "layers": 3, "meta_step": 2.0, "templates": ["a {}", "{}, drawn"],
         "zero_grad": "set_to_none=True", **SGD_TEXT},
        more={},
    ),
    "provp_deep": Variant(
        "provp",
        {"n_ctx_vision": 5, "depth": 3, "progressive_alpha": 0.2, "ref_loss_weight": 0.5, "template": "a {}, drawn."},
        {"n_prompts": 5, "layers": 3, "alpha_decay": 0.2, "use_ref": True, "lam": 0.5, "prompt": "a {}, drawn.", **SGD_TEXT},
        more={},
    ),
    "provp_without_ref": Variant(
        "provp",
        {"n_ctx_vision": 2, "ref_loss_weight": 0.0},
        {"n_prompts": 2, "layers": 4, "alpha_decay": 0.01, "use_ref": False, "lam": 1.0, **SGD_TEXT},
        more={},
    ),
    "plotpp_vision": Variant(  # its second text goes on behind the learned tokens
        "plotpp",
        {"n_prompts": 2, "n_vision_prompts": 3, "n_ctx_vision": 1, "ctx_init": "one photo of|this is a photo of", "trained": "vision",
         "add_pooled_logits": True, "sinkhorn_eps": 0.2, "sinkhorn_max_iter": 4, "sinkhorn_threshold": 1e-9},
        {"N": 2, "M": 3, "n_ctx": 3, "n_ctx_vision": 1, "ctx_init": ["one photo of", "this is a photo of"], "model_upd": "vision",
         "trade_off": True, "eps": 0.2, "max_iter": 4, "thresh": 1e-9},
    ),
    "plotpp_random": Variant(
        "plotpp",
        {"n_prompts": 3, "n_vision_prompts": 2, "n_ctx": 2, "ctx_init": "", "sinkhorn_max_iter": 4, "sinkhorn_threshold": 1e-9},
        {"N": 3, "M": 2, "n_ctx": 2, "n_ctx_vision": 2, "ctx_init": "random", "max_iter": 4, "thresh": 1e-9},
    ),
    "rpo_few": Variant(
        "rpo", {"n_prompts": 3, "template": "one {} here"}, {"K": 3, "prompt": "one _ here", "logits": "mean over K"}
    ),
    "clip_adapter_wide": Variant("clip-adapter", {"reduction": 3, "ratio": 0.7}, {"reduction": 3, "ratio": 0.7, "template": TEMPLATE}),
    "tip_adapter_f_grid": Variant(
        "tip-adapter-f",
        {"alpha": 2.0, "beta": 3.0, "augment_epoch": 2, "search_scale": (400.0, 60.0), "search_step": (6, 5)},
        {"alpha": 2.0, "beta": 3.0, "augment_epoch": 2, "search_scale": [400, 60], "search_step": [6, 5], "template": TEMPLATE},
        more={"optimizer": ADAMW, "schedule": "official CosineAnnealingLR over T_max=5 steps, stepped every batch"},
    ),
}  # fmt: skip


def make_folder(root: Path) -> Path:
    """The folder, with its CLIP beside it."""
    torch.manual_seed(0)
    vision = {"layers": DEPTH, "width": 64, "patch_size": 8, "image_size": 24}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": DEPTH}
    model = open_clip.CLIP(embed_dim=40, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    for part in ("mmrl", "baselines"):
        (root / part).mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}, root / "mmrl" / "clip.safetensors")
    clip = load_clip(str(root / "mmrl" / "clip.safetensors"), device="cpu")
    clip.model.double()
    cases = {name: make_case(root / "baselines", name, variant, clip) for name, variant in VARIANTS.items()}
    cases["nobody"] = {"hyper": {}, "losses": []}
    about = {"classnames": NAMES, "clip_weights": "../mmrl/clip.safetensors, cast to float32"}
    (root / "baselines" / "golden.json").write_text(json.dumps({"about": about, "cases": cases}))
    return root / "baselines"


def images(count: int, *shape: int) -> Tensor:
    return torch.randn(*shape, count, 3, 24, 24, dtype=torch.float64)


def in_authors_names(variant: Variant, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One tensor a layer, as they have it."""
    out = {}
    for ours, tensor in tensors.items():
        theirs = prefix + methods.get(variant.method).authors_names[ours]
        layers = enumerate(tensor, variant.first_layer if theirs.count("resblocks") or variant.method == "mma" else 0)
        split = {theirs.replace("{i}", str(i)): part for i, part in layers} if "{i}" in theirs else {theirs: tensor}
        out.update({name: part.detach().clone().contiguous() for name, part in split.items()})
    return out


def make_case(folder: Path, name: str, variant: Variant, clip: Clip) -> dict[str, Any]:
    """Write the case's tensors; returns what golden.json says of it."""
    torch.manual_seed(list(VARIANTS).index(name))
    out: dict[str, Tensor] = {"images": images(2, STEPS), "labels": torch.randint(len(NAMES), (STEPS, 2))}
    case = {"hyper": variant.hyper, **variant.more}
    task = Task(tuple(NAMES), TEMPLATE)
    if variant.method.startswith("tip"):
        out |= {"cache_images": images(6, 2), "cache_labels": torch.tensor([0, 0, 1, 1, 2, 2])}
        out["val_labels"] = torch.arange(7) % 3
        out["val_images"] = out["cache_images"][0, 2 * out["val_labels"]] + 0.3 * images(7)  # so that the cache is of use
        out["test_features"] = F.normalize(clip.model.encode_image(out["images"].flatten(0, 1)), dim=-1)
        task = Task(tuple(NAMES), TEMPLATE, 6, 7, features=lambda part, views=0: (torch.zeros(views, 6, 40).double(), out["cache_labels"]))
    method = methods.build(variant.method, clip, variant.options, seed=0, task=task).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        if variant.method.startswith("tip"):
            method.get_parameter("keys").copy_(tip_adapter.cache_keys(clip.model, out["cache_images"]))
            out["cache_keys"] = method.get_parameter("keys").detach().T.clone()
    form = plain_of(variant.method)
    assert form is not None
    plain = form(method, NAMES, TEMPLATE)
    first = out["images"][0]
    if variant.method == "metaprompt":  # the two halves of the classes part the first image's from the second's, where they differ
        orders = [[a, *({0, 1, 2} - {a, b}), *({b} - {a})] for a, b in out["labels"].tolist()]
        out["class_permutation"] = torch.tensor(orders)
    out |= in_authors_names(variant, plain.parameters, "init.")
    with torch.no_grad():
        out["logits"] = plain.logits(first)
    case["losses"], epochs = steps_of(plain, variant, case, out)
    with torch.no_grad():
        if variant.method == "promptsrc":
            for key, value in averaged(epochs, 2.0, 1.0).items():
                plain.parameters[key].copy_(value)
        out["eval_logits"] = plain.logits(out["images"].flatten(0, 1) if "test_features" in out else first)
        if "val_images" in out:
            case["searched_beta_alpha"] = searched(plain, variant, out, clip)
    out |= in_authors_names(variant, plain.parameters, "final.")
    save_file({key: value.detach().contiguous() for key, value in out.items()}, folder / f"{name}.safetensors")
    return case


def steps_of(plain: Any, variant: Variant, case: dict[str, Any], out: dict[str, Tensor]) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Take the steps. Returns losses, and the parameters after each; adds gradients of the first to `out`."""
    losses, after, parameters = [], [], plain.parameters
    optimizer, schedule = optimizer_of(case, list(parameters.values()))
    for step, (batch, labels) in enumerate(zip(out["images"], out["labels"])):
        losses.append(float(plain.loss(batch, labels).detach()))
        found = plain.gradients(batch, labels) if hasattr(plain, "gradients") else by_name(plain.loss(batch, labels), parameters)
        for key, parameter in parameters.items():
            parameter.grad = found[key]
        if step == 0:
            out |= in_authors_names(variant, found, "grad.")
        optimizer.step()
        if "class_permutation" in out:
            plain.stepped(batch, labels, optimizer, out["class_permutation"][step])
        schedule()
        after.append({key: parameter.detach().clone() for key, parameter in parameters.items()})
    return losses, after


def by_name(loss: Tensor, parameters: dict[str, Any]) -> dict[str, Tensor]:
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


def optimizer_of(case: dict[str, Any], parameters: Sequence[Any]) -> tuple[torch.optim.Optimizer, Callable[[], object]]:
    """Written out, so that what the tool reads in golden.json is checked."""
    if "optimizer" not in case:
        if case["hyper"]["optimizer"].startswith("SGD"):
            return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=5e-4), lambda: None
        return torch.optim.AdamW(parameters, lr=0.002, weight_decay=1e-2, eps=1e-6), lambda: None
    if case["optimizer"]["class"] == "SGD":
        return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=5e-4), lambda: None
    if case["optimizer"]["class"] == "Adam":
        return torch.optim.Adam(parameters, lr=0.002, eps=1e-3, weight_decay=5e-4), lambda: None
    optimizer = torch.optim.AdamW(parameters, lr=0.002, eps=1e-4, betas=(0.9, 0.99), weight_decay=0.01)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5).step


def searched(plain: Any, variant: Variant, out: dict[str, Tensor], clip: Clip) -> list[float]:
    """Beta and alpha; adds the logits with them to `out`."""
    val = F.normalize(clip.model.encode_image(out["val_images"]), dim=-1)
    scale, step = variant.options["search_scale"], variant.options["search_step"]
    beta, alpha = tip_adapter.search(val, out["val_labels"], plain.text, plain.keys, plain.values, scale, step)
    out["searched_test_logits"] = tip_adapter.tip_logits(out["test_features"], plain.text, plain.keys, plain.values, alpha, beta)
    return [beta, alpha]
