"""The golden tool works for any folder in the format: here one of other widths, J, K, ranks and class names, made with the plain oracle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from tests.oracle.plain import Plain

ROOT = Path(__file__).parents[2]
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
    images, labels = torch.randn(STEPS, 2, 3, 24, 24), torch.randint(len(NAMES), (STEPS, 2))
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


@pytest.mark.parametrize("wrong", [False, True])
def test_another_folder(tmp_path: Path, wrong: bool) -> None:
    make_folder(tmp_path)
    if wrong:
        about = json.loads((tmp_path / "golden.json").read_text())
        about["cases"]["other name"]["beta"] = 0.31
        (tmp_path / "golden.json").write_text(json.dumps(about))
    result = subprocess.run([sys.executable, str(ROOT / "tools" / "check_golden.py"), str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == int(wrong), result.stdout + result.stderr
    assert ("OVER" in result.stdout) == wrong and result.stdout.count("final parameters") == 2
