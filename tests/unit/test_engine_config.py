from __future__ import annotations

import pytest

from mmrl.engine import FitConfig, make_config
from mmrl.errors import UsageError


def test_defaults_are_the_published_ones() -> None:
    config = make_config(None)
    assert (config.epochs, config.batch_size, config.lr, config.weight_decay) == (10, 4, 1e-3, 5e-4)
    assert (config.warmup_epochs, config.warmup_lr, config.precision, config.accumulate) == (1, 1e-5, "fp32", 1)
    assert (config.optimizer, config.eps, config.schedule, config.schedule_step, config.final_lr) == ("adamw", 1e-8, "cosine", "epoch", 0)
    assert (config.iterations, config.drop_last, config.crop_scale) == (None, True, (0.5, 1.0))


def test_every_option_is_described() -> None:
    assert [name for name, field in FitConfig.model_fields.items() if not field.description] == []


def test_all_problems_come_together() -> None:
    with pytest.raises(UsageError) as caught:
        make_config({"epochs": 0, "lr": -1.0, "precision": "fp8", "epoch": 3})
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "unknown training option 'epoch'" in lines[0] and "Did you mean 'epochs'?" in lines[0]
    assert any("epochs is 0" in line and "greater than or equal to 1" in line for line in lines)
    assert any("lr is -1.0" in line for line in lines)
    assert any("precision is 'fp8'" in line and "'bf16'" in line for line in lines)


@pytest.mark.parametrize(("values", "words"), [
    ({"epochs": 1}, ["warmup_epochs is 1", "warmup_epochs=0"]),
    ({"epochs": 3, "warmup_epochs": 5}, ["warmup_epochs is 5", "less than epochs (3)"]),
    ({"lr": float("inf")}, ["lr is inf", "finite"]),
    ({"seed": -1}, ["seed is -1"]),
    ({"checkpoint_every": 0}, ["checkpoint_every is 0"]),
    ({"memory_gib": 0}, ["memory_gib is 0"]),
    ({"views": 0}, ["views is 0", "greater than or equal to 1"]),
    ({"views_gib": -1}, ["views_gib is -1"]),
    ({"iterations": 0}, ["iterations is 0", "greater than or equal to 1"]),
    ({"optimizer": "adagrad"}, ["optimizer is 'adagrad'", "'adamw', 'adam' or 'sgd'"]),
    ({"momentum": 1.0}, ["momentum is 1.0", "less than 1"]),
    ({"eps": 0}, ["eps is 0", "greater than 0"]),
    ({"schedule": "linear"}, ["schedule is 'linear'", "'cosine' or 'constant'"]),
    ({"schedule_step": "batch"}, ["schedule_step is 'batch'", "'epoch' or 'step'"]),
    ({"final_lr": -1e-3}, ["final_lr is -0.001"]),
    ({"drop_last": 2}, ["drop_last is 2"]),
    ({"accumulate": True}, ["accumulate is True", "no true or false"]),
    ({"crop_scale": (0.5, 0.2)}, ["crop_scale is (0.5, 0.2)", "0 < from <= to <= 1"]),
    ({"crop_scale": (0.0, 1.0)}, ["crop_scale is (0.0, 1.0)"]),
    ({"crop_scale": (0.1, 1.1)}, ["crop_scale is (0.1, 1.1)"]),
])  # fmt: skip
def test_out_of_range(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        FitConfig(**values)
    assert all(word in str(caught.value) for word in words), caught.value


def test_one_epoch_without_warmup_is_fine() -> None:
    assert FitConfig(epochs=1, warmup_epochs=0).epochs == 1


def test_what_identifies_a_run() -> None:
    """Options that change nothing of what comes out may change when it is resumed; all others may not."""
    plain = FitConfig().identity()
    assert plain == FitConfig(checkpoint_every=3, memory_gib=1.0, log="tensorboard").identity()
    others: dict[str, object] = {
        "iterations": 5, "drop_last": False, "optimizer": "sgd", "momentum": 0.5, "eps": 1e-3, "schedule": "constant",
        "schedule_step": "step", "final_lr": 1e-6, "crop_scale": (0.1, 1.0), "precision": "bf16", "accumulate": 2,
    }  # fmt: skip
    for key, value in others.items():
        assert FitConfig(**{key: value}).identity() != plain, key


def test_it_is_frozen_and_strict_about_names() -> None:
    with pytest.raises(ValueError):
        FitConfig().lr = 1.0  # type: ignore[misc]
    with pytest.raises(UsageError, match="learning"):
        FitConfig(learning_rate=1.0)


def test_views_count_where_an_epoch_repeats_some() -> None:
    plain = FitConfig(epochs=3).identity()
    assert not {"views", "views_gib", "views_disk_gib"} & plain.keys()
    assert FitConfig(epochs=3, views=3).identity() == FitConfig(epochs=3, views=7, views_gib=1, views_disk_gib=0).identity() == plain
    assert FitConfig(epochs=3, views=2).identity() == {**plain, "views": 2}
    assert FitConfig(epochs=3, iterations=50, views=3).identity()["views"] == 3
