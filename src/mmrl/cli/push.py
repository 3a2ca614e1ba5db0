"""`mmrl push`: upload an adapter to a model hub."""

from __future__ import annotations

import typer


def push(
    adapter: str = typer.Argument(..., help="Folder of a run or an adapter."),
    name: str = typer.Argument(..., metavar="ORG/NAME", help="Where to, on the hub that you are logged in to (`hf auth login`)."),
    private: bool = typer.Option(False, "--private", help="A new model is seen by its owners alone."),
    revision: str = typer.Option(None, "--revision", help="Branch, made if it is not there; default: the main one."),
    message: str = typer.Option("Adapter of mmrl", "--message", help="Of the commit."),
    licence: str = typer.Option("", "--license", metavar="ID", help="Licence of the adapter, for its card: mit, cc-by-4.0, ..."),
) -> None:
    """Upload an adapter and its model card to a model hub: trained tensors, class names and scores, and no name of an image.

    `mmrl predict ORG/NAME ...` and `mmrl.from_pretrained("ORG/NAME")` load it again.
    """
    from mmrl.classifier import hub

    address = hub.push(adapter, name, private=private, revision=revision, message=message, licence=licence)
    at = f"{name}@{revision}" if revision else name
    typer.echo(f"uploaded to {address}; to load it: mmrl predict {at} PHOTO")
