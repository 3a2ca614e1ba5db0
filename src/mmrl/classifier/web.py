"""Images from the web, within limits: size, time, redirects, and no address that only this machine or its network can reach.

What is fetched is never more than bytes: they are decoded as those of a file.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mmrl.data.images import REMEDY
from mmrl.errors import UsageError, first_line
from mmrl.version import __version__

PIECE = 2**16  # bytes


@dataclass(frozen=True)
class Urls:
    """What may be fetched.

    Attributes:
        most_bytes: size of an image file, at most.
        seconds: for an image, from the first connection to the last byte.
        redirects: at most.
        private: whether addresses of this machine and of private networks may be asked. Leave it off where users name the URLs: they
            could make this machine ask services that only it can reach.
    """

    most_bytes: int = 20 * 2**20
    seconds: float = 10.0
    redirects: int = 3
    private: bool = False


def fetched(url: str, limits: Urls) -> bytes:
    """The content at `url`. Proxies of the environment are not used: behind one, an address could not be checked.

    Raises:
        UsageError: it is not http or https, names a private address, redirects too often, or cannot be fetched within the limits.
    """
    until = time.monotonic() + limits.seconds
    connections: list[http.client.HTTPConnection] = []
    opener = _opener(limits, connections)
    watch = threading.Timer(limits.seconds, _cut, [connections])  # a server that sends a byte now and then would never time out
    watch.daemon = True
    watch.start()
    try:
        _require_allowed(url, limits)
        request = urllib.request.Request(url, headers={"User-Agent": f"mmrl/{__version__}", "Accept": "image/*"})
        with opener.open(request, timeout=limits.seconds) as answer:
            return _content(answer, url, limits, until)
    except UsageError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # urllib's errors are OSErrors; ValueError: read after the cut
        late = time.monotonic() >= until or isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
        why = f"it took more than {limits.seconds:g} s" if late else _reason(error)
        raise UsageError(f"{url} cannot be fetched: {why}. {REMEDY}") from error
    finally:
        watch.cancel()


def _content(answer: Any, url: str, limits: Urls, until: float) -> bytes:
    large = f"{url} is larger than {limits.most_bytes:,} bytes; allow more with allow_urls=Urls(most_bytes=...). {REMEDY}"
    length = answer.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > limits.most_bytes:
        raise UsageError(large)
    content = bytearray()
    while piece := answer.read1(PIECE):
        content += piece
        if len(content) > limits.most_bytes:
            raise UsageError(large)
        if time.monotonic() >= until:
            raise TimeoutError
    if time.monotonic() >= until:  # the connection was cut, which looks like an end
        raise TimeoutError
    if length.isdigit() and len(content) < int(length):
        raise OSError(f"it ended after {len(content):,} of {int(length):,} bytes")
    return bytes(content)


def _cut(connections: list[http.client.HTTPConnection]) -> None:
    for connection in connections:
        if connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", None)
    return first_line(reason if isinstance(reason, BaseException) else error).rstrip(".")


def _require_allowed(url: str, limits: Urls) -> None:
    """Raises UsageError where the scheme or the address of `url` may not be asked."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"'{url}' is not a valid URL: {error}.") from error
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise UsageError(f"'{url}' cannot be fetched: a URL begins with http:// or https:// and a host.")
    if limits.private:
        return
    try:
        found = socket.getaddrinfo(host, port or (443 if parts.scheme.lower() == "https" else 80), type=socket.SOCK_STREAM)
    except OSError as error:
        raise _not_asked(host) from error
    for *_, address in found:
        _require_public(str(address[0]), host)


def _require_public(address: str, host: str) -> None:
    known = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(known, "ipv4_mapped", None) or getattr(known, "sixtofour", None) or known
    if not (known.is_global and mapped.is_global) or known.is_multicast:
        raise _not_asked(host)


def _not_asked(host: str) -> UsageError:
    """The same for a name without an address and for one inside: who names URLs to a server learns nothing of the network that it is in."""
    return UsageError(
        f"'{host}' is not known, or is at an address of this machine or of a private network, which is not asked. Check the URL; where you "
        "trust whoever names the URLs, allow_urls=Urls(private=True) allows such an address."
    )


def _opener(limits: Urls, connections: list[http.client.HTTPConnection]) -> urllib.request.OpenerDirector:
    class Checked:
        """A connection whose other end is looked at before anything is sent: a name may lead elsewhere than it did when it was checked."""

        def connect(self) -> None:
            super().connect()  # type: ignore[misc]  # of the connection that this is mixed into
            connections.append(self)  # type: ignore[arg-type]
            if not limits.private:
                _require_public(str(self.sock.getpeername()[0]), self.host)  # type: ignore[attr-defined]

    class Plain(Checked, http.client.HTTPConnection):
        pass

    class Secure(Checked, http.client.HTTPSConnection):
        pass

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req)

    class Redirects(urllib.request.HTTPRedirectHandler):
        max_redirections = limits.redirects

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
            _require_allowed(newurl, limits)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = urllib.request.OpenerDirector()
    kinds = (PlainHandler, SecureHandler, Redirects, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor)
    for kind in kinds:  # and no handler of file:, ftp:, data: or of proxies
        opener.add_handler(kind())
    return opener
