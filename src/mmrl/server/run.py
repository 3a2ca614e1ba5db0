"""Starting and ending a server: one process, or one a device with another that watches over them."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess
from uvicorn import Server
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from mmrl.errors import MmrlError, UsageError, first_line
from mmrl.server import logs, worker
from mmrl.server.connection import config_of
from mmrl.server.metrics import SHARED
from mmrl.server.settings import Settings

SPARE = 5  # seconds beyond all limits that an end waits for
HEALTH = 30  # seconds that a process may take to say that it lives; one that hangs is killed, and another started
BETWEEN_PINGS = 10.0  # seconds


def prepared(settings: Settings) -> Any:
    """The application of this process, with its adapters loaded.

    Raises:
        UsageError, MmrlError: as `Adapters`, or a bad token.
    """
    import torch

    from mmrl.server.app import make_app
    from mmrl.server.security import read_token
    from mmrl.server.service import Service

    warnings.simplefilter("ignore")  # what they would say is in the answers
    if settings.threads:
        torch.set_num_threads(settings.threads)
    token = read_token(settings.token_file)
    service = Service(settings)
    logs.set_up()
    return make_app(service, token)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet.

    Raises:
        UsageError: there is no such address here.
        MmrlError: it is in use, or may not be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(f"'{host}' is no address of this machine: {first_line(error)}. Give another with --host.") from error
    try:
        _require_free(family, address)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"'{host}' is no address of this machine. Give another with --host.") from error
        why = {errno.EADDRINUSE: "is in use", errno.EACCES: "needs rights that this user lacks"}.get(error.errno or 0, first_line(error))
        raise MmrlError(f"port {port} of {host} {why}. Give another with --port.") from error
    found.set_inheritable(True)
    return found


def _require_free(family: int, address: Any) -> None:
    """Raises OSError where something answers there: with SO_REUSEADDR a second server could bind a port before the first one listens."""
    if address[1]:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)


def url_of(found: socket.socket) -> str:
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, devices: Sequence[str], *, host: str, port: int, announce: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT; then nothing is accepted any more, and what was accepted is answered.

    Args:
        devices: one a process.
        announce: told the address in one line, once requests are taken.

    Raises:
        UsageError, MmrlError: as `bound` and `prepared`.
    """
    names = ", ".join(name for name, _ in settings.adapters)
    with bound(host, port) as listening:
        line = f"serving {names} at {url_of(listening)}"
        if len(devices) == 1:
            _one(settings, devices[0], listening, lambda: announce(f"{line} (Ctrl-C ends)"))
        else:
            processes = f"in {len(devices)} processes: {', '.join(devices)}"
            _several(settings, devices, listening, lambda: announce(f"{line} {processes} (Ctrl-C ends)"))


def _options(settings: Settings) -> dict[str, Any]:
    longest = settings.limits.body_seconds + settings.limits.seconds + SPARE
    return {"timeout_graceful_shutdown": int(longest), "timeout_worker_healthcheck": HEALTH}


class _Announcing(Server):
    """Says when it has started."""

    def __init__(self, config: Any, announce: Callable[[], object]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def _one(settings: Settings, device: str, listening: socket.socket, announce: Callable[[], object]) -> None:
    app = prepared(replace(settings, device=device))
    server = _Announcing(config_of(app, **_options(settings)), announce)
    for each in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again in the end: this one has ended well
        signal.signal(each, signal.SIG_IGN)
    server.run([listening])


class _Watching(Multiprocess):
    """uvicorn's, which starts the processes one after the other, so that what is wrong is said once."""

    def __init__(self, config: Any, sockets: list[socket.socket], folder: Path, announce: Callable[[], object]) -> None:
        super().__init__(config, sockets)
        self._folder, self._announce = folder, announce
        self._next_ping = time.monotonic() + BETWEEN_PINGS
        self.failed = False  # whether one ended before it was ready

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            process = Process(self.config, self.sockets)
            process.start()
            self.processes.append(process)
            while not process.wait_until_ready(1.0, self.should_exit):
                self.handle_signals()
                self.failed = not self.should_exit.is_set() and not process.process.is_alive()
                if self.failed or self.should_exit.is_set():
                    self.should_exit.set()
                    return
            (self._folder / worker.STARTED).touch()
        self._announce()

    def keep_subprocess_alive(self) -> None:
        before = {process.pid for process in self.processes}
        if all(process.process.is_alive() for process in self.processes) and time.monotonic() < self._next_ping:
            return  # asking each time would take HEALTH for one that dies while it is asked
        self._next_ping = time.monotonic() + BETWEEN_PINGS
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            logs.say(logging.ERROR, "a process died and was started again", died=pid)
            multiprocess.mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]

    def restart_all(self) -> None:
        """SIGHUP: one after the other, each when the device of the one before it is free; the others answer meanwhile, and stay as they are
        where a new one does not get ready. SIGTERM and SIGINT are not kept waiting until all are replaced."""
        for at, old in enumerate(self.processes):
            if not {signal.SIGTERM, signal.SIGINT}.isdisjoint(self.signal_queue):
                return
            old.terminate()
            old.join()
            self.processes[at] = new = Process(self.config, self.sockets)
            new.start()
            if not new.wait_until_ready(HEALTH, self.should_exit):
                logs.say(logging.ERROR, "a new process did not get ready; the others are not replaced", new=new.pid)
                return

    def handle_ttin(self) -> None:
        """No more processes than devices."""

    def handle_ttou(self) -> None:
        """No fewer, either."""

    def terminate_all(self) -> None:
        for each in self.sockets:
            each.close()  # the processes close theirs: nothing is accepted that nobody would answer
        super().terminate_all()


def _several(settings: Settings, devices: Sequence[str], listening: socket.socket, announce: Callable[[], object]) -> None:
    logs.set_up()
    with tempfile.TemporaryDirectory(prefix="mmrl-serve-") as name:
        folder = Path(name)
        own = {worker.SETTINGS: settings.to_json(), worker.DEVICES: json.dumps(list(devices)), worker.FOLDER: name, SHARED: name}
        os.environ.update(own)
        config = config_of("mmrl.server.worker:make", factory=True, workers=len(devices), **_options(settings))
        watching = _Watching(config, [listening], folder, announce)
        watching.run()
        if (folder / worker.FAILED).exists():
            failed = json.loads((folder / worker.FAILED).read_text())
            raise (UsageError if failed["code"] == UsageError.exit_code else MmrlError)(failed["message"])
        if watching.failed:
            raise MmrlError("a process of the server ended before it was ready; its messages are above.")
