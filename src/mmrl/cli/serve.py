"""`mmrl serve`: adapters over HTTP."""

from __future__ import annotations

from pathlib import Path

import typer


def serve(
    adapters: list[str] = typer.Argument(..., metavar="ADAPTER...", help="Folders, hub names, 'zero-shot', or NAME=FOLDER; one backbone."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen at; 0.0.0.0 for every one of this machine."),
    port: int = typer.Option(8000, "--port", min=0, max=65535, help="Port; 0 for a free one."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda, ...; of several, as cuda:0,cuda:1, each has a process."),
    workers: int = typer.Option(1, "--workers", min=1, max=256, help="Processes on a CPU; one that dies is started again."),
    threads: int = typer.Option(0, "--threads", min=0, help="Torch's threads in a process; 0: the cores, shared among the processes."),
    backbone: str = typer.Option(None, "--backbone", help="Backbone, if not the one the adapters name; for zero-shot, which."),
    token_file: Path = typer.Option(None, "--token-file", help="File with a bearer token; or set MMRL_TOKEN. Default: none is needed."),
    allow_urls: bool = typer.Option(False, "--allow-urls", help="Fetch images given as URLs of public addresses."),
    reload: float = typer.Option(2.0, "--reload", min=0, help="Seconds between looks for adapters that changed; 0 for never."),
    batch: int = typer.Option(64, "--batch", min=1, help="Images that pass the image tower together, at most."),
    wait: float = typer.Option(4, "--wait", min=0, help="Milliseconds that a batch waits for images that are on their way."),
    queue: int = typer.Option(512, "--queue", min=1, help="Images that may wait for an answer in a process; above, 429."),
    max_images: int = typer.Option(32, "--max-images", min=1, help="Images of a request, at most."),
    max_mb: float = typer.Option(32, "--max-mb", min=0.001, help="Size of a request's body, at most, in MB (2^20 bytes)."),
    max_pixels: float = typer.Option(50, "--max-pixels", min=0.001, help="Pixels of an image, at most, in millions."),
    max_classes: int = typer.Option(1000, "--max-classes", min=1, help="Class names of a request times its prompts, at most."),
    timeout: float = typer.Option(30, "--timeout", min=0.001, help="Seconds for the body to arrive, and again for the answer."),
    quiet: bool = typer.Option(False, "--quiet", help="Log only what goes wrong."),
) -> None:
    """Serve adapters on one backbone: Hugging Face's zero-shot classification, KServe's protocol, raw images and forms.

    An adapter whose folder changes is loaded again. SIGTERM ends the server when all that it accepted is answered.
    """
    import importlib.util
    import os

    from mmrl.data.parallel import cores
    from mmrl.errors import UsageError
    from mmrl.server.settings import MIB, Limits, Settings, named_adapters

    missing = [name for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serving needs {', '.join(missing)}, which is not installed: pip install \"mmrl[serve]\"")
    devices = [each.strip() for each in device.split(",")]
    if len(devices) > 1 and workers > 1:
        raise UsageError(f"--device {device} and --workers {workers} are both given; several devices have one process each.")
    if workers > 1 and devices[0] not in ("cpu", "auto"):
        raise UsageError(f"--workers {workers} is for a CPU; for several GPUs name them: --device cuda:0,cuda:1.")
    if workers > 1:
        devices = ["cpu"] * workers
    if len(devices) > 1 and os.name != "posix":
        raise UsageError("several processes need a system with POSIX signals. Start a server for each device on a port of its own.")
    share = max(1, cores() // len(devices))
    limits = Limits(
        body=int(max_mb * MIB), pixels=int(max_pixels * 1e6), prompts=max_classes, images=max_images, queue=queue, batch=batch,
        wait=wait / 1000, body_seconds=timeout, seconds=timeout, held=max(int(max_mb * MIB), Limits.held),
    )  # fmt: skip
    settings = Settings(
        named_adapters(adapters), backbone=backbone, threads=threads or (share if len(devices) > 1 else 0), decoders=min(8, share),
        allow_urls=allow_urls, token_file=str(token_file) if token_file else None, reload=reload, limits=limits, quiet=quiet,
    )  # fmt: skip
    from mmrl.server.run import serve as serving

    serving(settings, devices, host=host, port=port, announce=lambda line: print(line, flush=True))
