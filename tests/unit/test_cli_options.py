"""Options as people type them: those of training by their names, and what is said of names that a command does not have."""

from __future__ import annotations

import pytest

from mmrl import methods
from mmrl.cli.grid import Grid
from mmrl.cli.options import training_settings
from mmrl.engine import settings
from mmrl.engine.context import _with_shorter_warmup
from mmrl.errors import Notice, UsageError
from tests.unit.conftest import Cli

TRAIN = ("train", "--data", "mini:digits", "--out", "nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--weight-decay", "0.1"), "--weight-decay. weight_decay is an option of training: --set weight_decay=VALUE."),
        ((*TRAIN, "--rep-tokens=3"), "rep_tokens is an option of mmrl, mmrlpp: --set rep_tokens=VALUE."),
        ((*TRAIN, "--epoch", "3"), "--epoch. Did you mean --epochs? Options of training and of methods are given as --set KEY=VALUE"),
        ((*TRAIN, "--rep-tokns", "3"), "Did you mean --set rep_tokens=VALUE?"),
        ((*TRAIN, "--foo", "3"), "--foo. Options of training and of methods are given as --set KEY=VALUE; `mmrl methods NAME`"),
        (("bench", "few-shot", "--momentum", "0.5"), "momentum is an option of training: --set momentum=VALUE."),
        (("predict", "a", "b", "--clases", "x"), "no such option: --clases. Did you mean --classes?"),
        (("predict", "a", "b", "--epochs", "1"), "no such option: --epochs."),
        (("data", "list", "--jsn"), "no such option: --jsn. Did you mean --json?"),
    ],
)
def test_no_such_option_points_to_what_there_is(cli: Cli, words: tuple[str, ...], message: str) -> None:
    code, _, err = cli(*words)
    assert code == 2 and err.startswith("error: no such option: ") and message in err and err.count("\n") == 1, err
    assert ("--set" in err) == (words[0] in ("train", "bench"))


def test_options_of_training_have_names_of_their_own() -> None:
    assert training_settings(["lam=1"], epochs=3, lr=0.5, batch_size=None) == {"lam": 1, "epochs": 3, "lr": 0.5}
    with pytest.raises(UsageError, match="--batch-size 4 and --set batch_size=8 are both given; use one of them."):
        training_settings(["batch_size=8"], epochs=None, lr=None, batch_size=4)
    grid = Grid(out=None, epochs=2, set_=["alpha=0.5"])  # type: ignore[arg-type]
    assert grid.own_options(["mmrl", "coop"]) == {"mmrl": {"alpha": 0.5, "epochs": 2}, "coop": {"epochs": 2}}


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).trained_by() == "steps"])
def test_one_epoch_is_no_mistake(name: str) -> None:
    for protocol in ("base-to-novel", "few-shot", "cross-dataset"):
        found = settings(name, protocol=protocol, shots=16, overrides={"epochs": 1})
        assert found.fit["epochs"] == 1 and found.fit["warmup_epochs"] == 0


def test_a_warm_up_is_cut_where_the_user_did_not_choose_it() -> None:
    resolved = settings("coop", overrides={"epochs": 3, "warmup_epochs": 2}).replaced("epochs", 2, "command line")
    with pytest.warns(Notice, match="warmup_epochs is 1 instead of 2, since epochs is 2."):
        assert _with_shorter_warmup(resolved, {"epochs": 2}).fit["warmup_epochs"] == 1
    with pytest.raises(UsageError, match="warmup_epochs"):
        settings("coop", overrides={"epochs": 1, "warmup_epochs": 1})
    assert settings("coop", overrides={"epochs": 5}).fit["warmup_epochs"] == 1
