"""The golden tool works for any folder in the format, and judges it as it says.

The folders have other widths, J, K, ranks, variants and class names than the authors' numbers, and are made with the plain oracle and
plain forms in float64. So what the tool computes in float64 must agree to 1e-9, and a single wrong element is seen on every processor.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.oracle.plain import Plain
from tests.parity import made_up
from tools import check_golden
from tools.golden.baselines import method_of, options_of
from tools.golden.judge import Tensors
from tools.golden.replay import stepping

NAMES = ["owl", "great_white shark", "x"]
STEPS, FIRST, DEPTH = 3, 2, 4
CASES = {
    "mmrl": {"K": 3, "dr": 24, "alpha": 0.4, "reg": 3.0},
    "other name": {"K": 2, "dr": 16, "alpha": 0.6, "reg": 0.5, "beta": 0.3, "plora": 5, "rlora": 2},
}


def make_folder(folder: Path) -> None:
    torch.manual_seed(0)
    vision = {"layers": DEPTH, "width": 64, "patch_size": 8, "image_size": 24}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": DEPTH}
    model = open_clip.CLIP(embed_dim=40, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}, folder / "clip.safetensors")
    model.double()
    tokens = open_clip.get_tokenizer("ViT-B-32")([f"a {name.replace('_', ' ')}, drawn." for name in NAMES])
    about = {"classnames": NAMES, "template": "a {}, drawn.", "cases": {}}
    for name, case in CASES.items():
        about["cases"][name] = {**case, "layers": list(range(FIRST, DEPTH + 1)), **make_case(folder, name, case, model, tokens)}
    (folder / "golden.json").write_text(json.dumps(about))


def make_case(folder: Path, name: str, case: dict[str, float], model: open_clip.CLIP, tokens: torch.Tensor) -> dict[str, object]:
    plus_plus = "beta" in case
    ranks = {"beta": case["beta"], "layer_rank": case["rlora"], "projection_rank": case["plora"]} if plus_plus else {}
    plain = Plain(
        model, tokens, first_layer=FIRST, rep_tokens=case["K"], rep_dim=case["dr"], alpha=case["alpha"], lam=case["reg"],
        plus_plus=plus_plus, **ranks,
    )  # fmt: skip
    images, labels = torch.randn(STEPS, 2, 3, 24, 24, dtype=torch.float64), torch.randint(len(NAMES), (STEPS, 2))
    out = {"images": images, "labels": labels}
    out |= {f"init.{k}": p.detach().clone() for k, p in plain.named_parameters()}
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=5e-4)
    losses = []
    for step in range(STEPS):
        result = plain(images[step], labels[step])
        optimizer.zero_grad()
        result["loss"].backward()
        losses.append(result["loss"].item())
        if step == 0:
            kept = ("logits_class", "logits_rep", "logits_fused", "image_features", "text_features")
            zero_shot = ("image_features_zero_shot", "text_features_zero_shot")
            out |= {key: result[key].detach().clone() for key in (*kept, *zero_shot)}
            out |= {f"grad.{k}": p.grad.clone() for k, p in plain.named_parameters()}
        optimizer.step()
    out |= {f"final.{k}": p.detach().clone() for k, p in plain.named_parameters()}
    result = plain(images[0], labels[0])
    out |= {f"eval_{key}": result[key].detach().clone() for key in ("logits_class", "logits_fused")}
    save_file({k: v.contiguous() for k, v in out.items()}, folder / f"{name}.safetensors")
    return {"losses": losses, "trainable": sum(p.numel() for p in plain.parameters())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make_folder(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(whole, tmp_path / "golden"))


def change(folder: Path, name: str, index: tuple[int, ...], share: float) -> None:
    """Move one element of a tensor of MMRL++ by `share` of the tensor's largest."""
    file = folder / "other name.safetensors"
    tensors = load_file(file)
    tensors[name][index] += share * tensors[name].abs().max()
    save_file(tensors, file)


def over(text: str) -> dict[str, str]:
    """Group -> the errors over the tolerance."""
    rows = [line for line in text.splitlines()[1:] if "OVER" in line]
    assert all(row.startswith("other name") for row in rows)
    return {row.removeprefix("other name").split("  ")[0].strip(): row.split("OVER 0.0001: ")[1] for row in rows}


def test_another_folder_agrees_to_the_last_digits_of_either_precision(whole: Path) -> None:
    found = check_golden.check_folder(whole)
    assert found.keys() == CASES.keys()
    for pair in found.values():
        assert isinstance(pair, check_golden.Pair)
        assert pair.float64.keys() == pair.float32.keys() and len(pair.float64) == 7
        for group, error in pair.float64.items():
            assert error.norm < 1e-9 and error.element < 1e-9 and error.left_out == 0, group  # float64 numbers decide themselves
        assert all(1e-9 < error.norm < 1e-4 for error in pair.float32.values())


def test_another_folder_passes(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_golden.main([str(whole)]) == 0
    out = capsys.readouterr().out
    assert "OVER" not in out and out.count("final parameters") == 2


def test_a_wrong_hyper_parameter_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = json.loads((folder / "golden.json").read_text())
    about["cases"]["other name"]["beta"] = 0.31
    (folder / "golden.json").write_text(json.dumps(about))
    assert check_golden.main([str(folder)]) == 1
    found = over(capsys.readouterr().out)
    assert found["gradients"] == "float64 norm, float64 element, float32 norm" and "zero-shot features" not in found


def test_one_wrong_element_is_found_in_float64_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among a thousand right ones it hardly moves the norm, which is all that float32 is judged by."""
    change(folder, "final.representation_learner.srra_r2vproj.weight", (3, 5), 2e-4)
    assert check_golden.main([str(folder)]) == 1
    assert over(capsys.readouterr().out) == {"final parameters": "float64 element"}


def test_a_number_that_is_none_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "logits_rep", (0, 1), float("nan"))
    assert check_golden.main([str(folder)]) == 1
    assert over(capsys.readouterr().out) == {"logits": "float64 norm, float64 element, float32 norm"}


def test_what_is_judged() -> None:
    right, wrong = check_golden.Error(), check_golden.Error(norm=2e-4, element=2e-4)
    assert check_golden.over_tolerance(wrong, right) == ["float64 norm", "float64 element"]
    assert check_golden.over_tolerance(right, wrong) == ["float32 norm"]
    assert check_golden.over_tolerance(right, check_golden.Error(element=1.0)) == []


# ---- the methods that the paper compares with ----


@pytest.fixture(scope="module")
def whole_baselines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.make_folder(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def baselines(whole_baselines: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(whole_baselines.parent, tmp_path / "golden")) / "baselines"


def keep(folder: Path, *names: str, **changes: object) -> None:
    """Leave only these cases in golden.json, and change entries of the hyper-parameters of the first."""
    about = json.loads((folder / "golden.json").read_text())
    about["cases"] = {name: about["cases"][name] for name in names}
    about["cases"][names[0]]["hyper"] |= changes
    (folder / "golden.json").write_text(json.dumps(about))


def test_variants_of_every_method_agree_to_the_last_digits_of_either_precision(whole_baselines: Path) -> None:
    found = check_golden.check_folder(whole_baselines)
    assert found.pop("nobody") is None
    assert found.keys() == made_up.VARIANTS.keys()
    for name, pair in found.items():
        assert isinstance(pair, check_golden.Pair), pair
        assert {"logits", "losses", "gradients", "final parameters", "evaluation logits"} <= pair.float64.keys()
        for group, error in pair.float64.items():
            assert error.norm < 1e-9 and error.element < 1e-9 and error.left_out == 0, (name, group)
        assert all(error.norm < 1e-4 for error in pair.float32.values()), name


def test_a_case_of_another_method_does_not_fail(baselines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(baselines, "mma-2-3", "nobody")
    assert check_golden.main([str(baselines)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["nobody", "not", "here", "yet"]


@pytest.mark.parametrize(
    ("case", "change", "groups"),
    [
        ("coop_front", {"class_token_position": "middle"}, {"logits", "losses", "gradients", "final parameters", "evaluation logits"}),
        ("mma-2-3", {"adapter_scale": 0.4}, {"logits", "losses", "gradients", "final parameters", "evaluation logits"}),
        ("mma-2-3", {"optimizer": "SGD momentum 0.8 weight_decay 5e-4"}, {"losses", "final parameters", "evaluation logits"}),
        ("promptsrc_shallow", {"gpa_mean": 2.5}, {"final parameters", "evaluation logits"}),
        ("tip_adapter_f_grid", {"search_scale": [400, 50]}, {"search"}),
    ],
)
def test_another_hyper_parameter_is_found(
    baselines: Path, capsys: pytest.CaptureFixture[str], case: str, change: dict[str, object], groups: set[str]
) -> None:
    keep(baselines, case, **change)
    assert check_golden.main([str(baselines)]) == 1
    rows = [line.removeprefix(case).strip().split("  ")[0] for line in capsys.readouterr().out.splitlines() if "OVER" in line]
    assert set(rows) == groups


@pytest.mark.parametrize(
    ("case", "method"),
    [
        ("tip_adapter_f_cosine", "tip-adapter-f"), ("tip_adapter", "tip-adapter"), ("cliplora_drop", "clip-lora"),
        ("clip-lora-r4", "clip-lora"), ("coop_csc", "coop"), ("nobody_b2n", None),
    ],
)  # fmt: skip
def test_the_method_follows_from_the_name(case: str, method: str | None) -> None:
    assert method_of(case) == method


def test_what_golden_json_says_of_a_case() -> None:
    text = {"hyper": {"optimizer": "AdamW betas (0.9,0.98) weight_decay 1e-2 eps 1e-8", "lr": 2e-4}}
    assert stepping(text).settings == {"lr": 2e-4, "betas": (0.9, 0.98), "weight_decay": 1e-2, "eps": 1e-8}
    sgd = stepping({"optimizer": {"class": "SGD", "lr": 0.1, "nesterov": True, "momentum": 0.9, "dampening": 0}})
    assert sgd.kind == "SGD" and sgd.eps is None and sgd.settings["nesterov"] is True
    drop = {"hyper": {"r": 4, "params": ["q", "v"], "position": "all (12+12 blocks)", "dropout_rate": 0.25}}
    found = options_of("clip-lora", drop, Tensors())
    assert found == {"rank": 4, "dropout": 0.25, "detach_input": False, "position": "all", "matrices": "qv"}


# ---- what cannot be replayed ----


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert check_golden.main([str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message
    return message


def test_files_that_are_missing(baselines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "golden.json" in refused(tmp_path / "nowhere", capsys)
    (baselines / "mma-2-3.safetensors").unlink()
    keep(baselines, "mma-2-3", "nobody")
    assert "mma-2-3: cannot read" in refused(baselines, capsys)
    (baselines.parent / "mmrl" / "clip.safetensors").unlink()
    assert "clip.safetensors, the CLIP of these cases" in refused(baselines, capsys)


def test_one_case_that_cannot_be_replayed_does_not_hide_the_others(baselines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(baselines, "maple_depth3", "mma-2-3", prompt_depth=2)
    assert check_golden.main([str(baselines)]) == 2
    out, err = capsys.readouterr()
    assert "mma-2-3" in out and "OVER" not in out
    assert err == "maple_depth3: init.* of 'deep': shape (1, 3, 128) here, (2, 3, 128) in the file\n"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cases": {"a": {}}}', '{"about": {}, "cases": {}}'])
def test_a_format_that_is_not_known(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "golden.json").write_text(content)
    assert "golden.json" in refused(tmp_path, capsys)


def test_a_tensor_that_is_missing_or_of_another_shape(baselines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(baselines, "coop_front")
    file = baselines / "coop_front.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "logits": tensors["logits"][:1].contiguous()}, file)
    assert "coop_front: logits: shape (2, 3) here, (1, 3) in the file" in refused(baselines, capsys)
    del tensors["final.prompt_learner.ctx"]
    save_file(tensors, file)
    assert "coop_front: the file has no tensor final.prompt_learner.ctx" in refused(baselines, capsys)
