"""Pretrain `tiny`, the CLIP that ships inside the package, on drawings made by `pretraining_images.py`.

    python tools/pretrain_tiny.py --steps 9000 --out build/tiny            # starts, or goes on where it stopped
    python tools/pretrain_tiny.py --steps 9000 --out build/tiny --export src/mmrl/clip/tiny

Batch i is drawn from seeds that depend on i alone, and a checkpoint holds model, optimizer and step, so a killed run
goes on as if it had not been. The rate is constant after a warm-up and falls linearly over the last quarter of --steps;
--steps may be changed between two starts, which moves the fall.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from pretraining_images import FACTS, SIZE, draw
from safetensors.torch import save_file

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": 8, "width": 192, "head_width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 8},
}
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
PREPROCESS = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
LENGTHS = (12, 16, 32)  # text batches are padded to one of these
WARMUP, FALL, CHECKPOINT_EVERY, LOG_EVERY = 300, 0.25, 250, 50
CHUNK = 32  # batches drawn at a time


def batch_of(task: tuple[int, int, int]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Images (B, 64, 64, 3) uint8, captions and facts (B, groups; -1 where none) of batch `index`; one batch in 16 has long captions."""
    seed, index, size = task
    base = (seed << 40) + index * size
    drawn = [draw(base + i) for i in range(size)]
    captions = [caption for _, caption, _ in drawn]
    facts = np.array([[names.index(f[group]) if group in f else -1 for group, names in FACTS.items()] for _, _, f in drawn])
    if index % 16 == 15:
        rng = np.random.default_rng(base)
        lead = ("here we see", "for the catalogue:", "one of many images that we drew for this:")
        captions = [f"{lead[rng.integers(len(lead))]} {caption}" for caption in captions]
    return np.stack([image for image, _, _ in drawn]), captions, facts


def text_features(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Normalised text features (B, d) of tokens (B, T) with T below the context length, which open_clip's own pass wants whole."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection, dim=-1)


def rate(step: int, steps: int, peak: float) -> float:
    fall = max(1, int(steps * FALL))
    return peak * min(1.0, (step + 1) / WARMUP, max(0.02, (steps - step) / fall))


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy over a batch in which equal captions are equally right.

    Args:
        image, text: normalised features (B, d).
        tokens: (B, T) token ids.
    """
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * image.float() @ text.float().T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def facts_loss(head: torch.nn.Linear, image: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of naming the facts from unnormalised image features (B, d); facts (B, groups), -1 where none.

    It only gets the image tower going (the contrastive loss alone stays on a plateau for long) and fades out with the rate.
    """
    logits = head(image).split([len(names) for names in FACTS.values()], dim=1)
    losses = [F.cross_entropy(part, facts[:, i], ignore_index=-1) for i, part in enumerate(logits) if (facts[:, i] >= 0).any()]
    return torch.stack(losses).mean()


def batches(args: argparse.Namespace, start: int, tokenizer: Any) -> Iterator[tuple[torch.Tensor, ...]]:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with mp.get_context("spawn").Pool(args.workers) as pool:
        for first in range(start, args.steps, CHUNK):  # drawing and training take turns: side by side they slow each other down
            tasks = [(args.seed, i, args.batch) for i in range(first, min(first + CHUNK, args.steps))]
            for drawn in pool.map(batch_of, tasks, chunksize=1):
                yield _tensors(*drawn, tokenizer, mean, std)


def _tensors(
    pixels: np.ndarray, captions: list[str], facts: np.ndarray, tokenizer: Any, mean: torch.Tensor, std: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    tokens = tokenizer(captions, context_length=LENGTHS[-1])
    longest = int(tokens.argmax(-1).max()) + 1
    tokens = tokens[:, : next(n for n in LENGTHS if n >= longest)]
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std, tokens, torch.from_numpy(facts)


def write(path: Path, save: Any) -> None:
    """Write under a temporary name and rename: a kill in the middle leaves the old file."""
    temporary = path.with_suffix(".partial")
    save(temporary)
    os.replace(temporary, path)


class Pretraining:
    """Model, naming head and optimizer, with what a checkpoint needs."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.model: Any = open_clip.CLIP(**MODEL_CFG)
        self.head = torch.nn.Linear(MODEL_CFG["embed_dim"], sum(len(names) for names in FACTS.values()))
        parameters = [*self.model.parameters(), *self.head.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
        self.step, self.began = 0, time.time()
        self.checkpoint: Path = args.out / "checkpoint.pt"

    def restore(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.began = state["step"], time.time() - state["seconds"]
        print(f"going on at step {self.step} of {self.args.steps}, {state['seconds'] / 60:.1f} min spent", flush=True)

    def save(self) -> None:
        parts = {"model": self.model, "head": self.head, "optimizer": self.optimizer}
        state = {name: part.state_dict() for name, part in parts.items()} | {"step": self.step, "seconds": time.time() - self.began}
        write(self.checkpoint, lambda path: torch.save(state, path))

    def update(self, images: torch.Tensor, tokens: torch.Tensor, facts: torch.Tensor) -> tuple[float, float, float]:
        """One step; contrastive loss, naming loss, and the share of images whose own caption is the nearest."""
        lr = rate(self.step, self.args.steps, self.args.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.precision == "bf16"):
            raw = self.model.encode_image(images)
            image, text = F.normalize(raw, dim=-1), text_features(self.model, tokens)
        loss = contrastive_loss(image, text, self.model.logit_scale.exp(), tokens)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is {loss.item()} at step {self.step}; the last checkpoint is {self.checkpoint}")
        naming = facts_loss(self.head, raw.float(), facts)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + 0.5 * lr / self.args.lr * naming).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
            hits = (image @ text.T).argmax(1).eq(torch.arange(len(image))).float().mean()
        self.step += 1
        return loss.item(), naming.item(), hits.item()

    def log(self, rows: list[tuple[float, float, float]]) -> None:
        loss, naming, hits = np.mean(rows, axis=0).tolist()
        scale, minutes = self.model.logit_scale.exp().item(), (time.time() - self.began) / 60
        line = {"step": self.step, "images": self.step * self.args.batch, "loss": round(loss, 4), "naming": round(naming, 3)}
        line |= {"retrieval@1": round(hits, 4), "scale": round(scale, 1), "minutes": round(minutes, 2)}
        print(json.dumps(line), flush=True)
        with (self.args.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def train(args: argparse.Namespace) -> torch.nn.Module:
    args.out.mkdir(parents=True, exist_ok=True)
    run = Pretraining(args)
    run.restore()
    tokenizer = open_clip.SimpleTokenizer(context_length=LENGTHS[-1])
    rows: list[tuple[float, float, float]] = []
    for images, tokens, facts in batches(args, run.step, tokenizer):
        rows.append(run.update(images, tokens, facts))
        if run.step % LOG_EVERY == 0:
            run.log(rows)
            rows = []
        if run.step % CHECKPOINT_EVERY == 0 or run.step == args.steps:
            run.save()
    print(f"{run.step} steps, {run.step * args.batch} images, {(time.time() - run.began) / 60:.1f} min", flush=True)
    return run.model


def export(model: torch.nn.Module, folder: Path) -> None:
    """Write open_clip's `local-dir:` layout in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items() if k != "attn_mask"}
    write(folder / "open_clip_model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"}))
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS}
    write(folder / "open_clip_config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))
    size = (folder / "open_clip_model.safetensors").stat().st_size / 1e6
    print(f"wrote {folder}: {size:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--export", type=Path, help="write the finished model to this folder")
    args = parser.parse_args()
    model = train(args)
    if args.export:
        export(model, args.export)


if __name__ == "__main__":
    main()
