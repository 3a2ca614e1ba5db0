"""What several verbs share: reading class lists and options from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from mmrl.errors import UsageError
from mmrl.files import parse_json

DEVICE = typer.Option("auto", "--device", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")


EPOCHS = typer.Option(None, "--epochs", min=1, help="Passes over the training images; the same as --set epochs=N.")
LR = typer.Option(None, "--lr", help="Learning rate; the same as --set lr=X.")
BATCH_SIZE = typer.Option(None, "--batch-size", min=1, help="Training images a batch; the same as --set batch_size=N.")


def training_settings(pairs: Sequence[str], *, epochs: int | None, lr: float | None, batch_size: int | None) -> dict[str, Any]:
    """What --set gives, with the options of training that have a name of their own on the command line.

    Raises:
        UsageError: one is given both ways, or as `parse_settings`.
    """
    found = parse_settings(pairs)
    own = {key: value for key, value in (("epochs", epochs), ("lr", lr), ("batch_size", batch_size)) if value is not None}
    for key in own:
        if key in found:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(f"{option} {own[key]} and --set {key}={found[key]} are both given; use one of them.")
    return found | own


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; values are read as JSON where they are JSON (numbers, true, false, null), else as text.

    Raises:
        UsageError: a pair without '='.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair}: expected KEY=VALUE, for example --set lam=0.5. `mmrl methods NAME` lists keys.")
        try:
            out[key.strip()] = parse_json(value)
        except ValueError:
            out[key.strip()] = value
    return out


def parse_seeds(value: str) -> list[int]:
    """Seeds from '1,2,3'. Raises UsageError for anything but different numbers from 0."""
    return _numbers(value, "--seeds", least=0, example="1,2,3")


def parse_shots(value: str) -> list[int]:
    """Shots from '1,2,4'. Raises UsageError for anything but different numbers from 1."""
    return _numbers(value, "--shots", least=1, example="1,2,4,8,16")


def _numbers(value: str, option: str, *, least: int, example: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} is '{value}'; give whole numbers separated by commas, for example {example}.") from error
    if len(set(numbers)) < len(numbers) or min(numbers) < least:
        raise UsageError(f"{option} is '{value}'; each must be {least} or more and stand once.")
    return numbers


def parse_values(value: str) -> list[Any]:
    """Values from 'a,b,c', numbers as numbers. Raises UsageError for a blank or repeated one."""
    return _values(value, "--values")


def parse_vary(pairs: Sequence[str]) -> dict[str, list[Any]]:
    """Values by option from several 'KEY=a,b,c'; a value in brackets or quotes is JSON, and may have commas.

    Raises:
        UsageError: no KEY=VALUES, an option given twice, or a blank or repeated value.
    """
    out: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, listed = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise UsageError(f"--vary {pair}: expected KEY=VALUES, for example --vary lr=0.0005,0.001. `mmrl methods NAME` lists keys.")
        if key in out:
            raise UsageError(f"--vary {pair}: {key} is varied twice; give all its values at once.")
        if key == "seed":
            raise UsageError(f"--vary {pair}: use --seeds, whose runs a row of the table is the mean of.")
        out[key] = _values(listed, f"--vary {key}")
    return out


def _values(value: str, option: str) -> list[Any]:
    parts: list[str] = []
    for piece in value.split(","):
        if parts and (parts[-1].count("[") > parts[-1].count("]") or parts[-1].count('"') % 2):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    parts = [part.strip() for part in parts]
    found = [parse_settings([f"value={part}"])["value"] for part in parts]
    if not all(parts) or any(value in found[:at] for at, value in enumerate(found)):
        raise UsageError(f"{option} is '{value}'; give values separated by commas, each once.")
    return found
