from __future__ import annotations

import pytest

from mmrl.engine import FitConfig, make_config
from mmrl.errors import UsageError


def test_defaults_are_the_published_ones() -> None:
    config = make_config(None)
    assert (config.epochs, config.batch_size, config.lr, config.weight_decay) == (10, 4, 1e-3, 5e-4)
    assert (config.warmup_epochs, config.warmup_lr, config.precision, config.accumulate) == (1, 1e-5, "fp32", 1)


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
])  # fmt: skip
def test_out_of_range(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        FitConfig(**values)
    assert all(word in str(caught.value) for word in words), caught.value


def test_one_epoch_without_warmup_is_fine() -> None:
    assert FitConfig(epochs=1, warmup_epochs=0).epochs == 1


def test_it_is_frozen_and_strict_about_names() -> None:
    with pytest.raises(ValueError):
        FitConfig().lr = 1.0  # type: ignore[misc]
    with pytest.raises(UsageError, match="learning"):
        FitConfig(learning_rate=1.0)
