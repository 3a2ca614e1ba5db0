"""The golden tool works for any folder in the format, and judges it as it says.

The folder has other widths, J, K, ranks and class names than the authors' numbers, and is made with the plain oracle in float64. So what
the tool computes in float64 must agree to 1e-9, and a single wrong element is seen on every processor.
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
from tools import check_golden

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
