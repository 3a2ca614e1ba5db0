"""Tip-Adapter: the cache, its logits, and the search on the validation images."""

from __future__ import annotations

from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.methods import Task
from mmrl.methods.tip_adapter import TipAdapter
from tools.golden.judge import GoldenError, Tensors, note
from tools.golden.replay import Replay


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


REPLAY = TipAdapterReplay
