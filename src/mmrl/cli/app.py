"""`mmrl app`: a page in the browser for people who do not program."""

from __future__ import annotations

import typer

from mmrl.cli.options import DEVICE

BACKBONES = "tiny,ViT-B-16-quickgelu/openai"


def app(
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on; 0.0.0.0 lets the whole network in: there is no login."),
    port: int = typer.Option(None, "--port", min=1, max=65535, help="Default: the first that is free from 7860."),
    backbones: str = typer.Option(BACKBONES, "--backbones", help="CLIPs that may be chosen, separated by commas; the default first."),
    max_upload_mb: int = typer.Option(200, "--max-upload-mb", min=1, max=10_000, help="Of one upload, packed and unpacked."),
    device: str = DEVICE,
    open_: bool = typer.Option(False, "--open", help="Open a browser."),
) -> None:
    """A page on which to drop photos, train, try and download a classifier. It runs here; nothing is sent elsewhere."""
    import signal
    import sys
    import threading
    import warnings

    from mmrl.app.serve import HOST, PageSettings, running
    from mmrl.app.session import Backbones
    from mmrl.app.uploads import MIB, UploadLimits
    from mmrl.cli.grid import names
    from mmrl.clip.device import checked_device
    from mmrl.errors import UsageError

    chosen = tuple(dict.fromkeys(names(backbones) or ()))
    if not chosen:
        raise UsageError("--backbones names none; give at least one, such as tiny.")
    checked_device(device)
    warnings.simplefilter("ignore")  # what is to be told of a training stands on the page
    limits = UploadLimits(upload_bytes=max_upload_mb * MIB, kept_bytes=max(UploadLimits.kept_bytes, 2 * max_upload_mb * MIB))
    settings = PageSettings(host, port, Backbones(chosen, device), limits, open_)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the photos go
    with running(settings) as (url, _):
        typer.echo(f"{url} (Ctrl+C ends it, and deletes all photos)")
        if host != HOST:
            typer.echo(f"note: whoever reaches {host} can use this page; there is no login", err=True)
        threading.Event().wait()
