"""From what a request holds to what the backbone takes, within limits; runs in threads of its own."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable
from typing import TypeVar

from PIL import Image

from mmrl.classifier.web import Urls, fetched
from mmrl.data import Preprocess, to_rgb
from mmrl.data.central import Planes
from mmrl.data.formats import reads_heic
from mmrl.data.images import REMEDY
from mmrl.data.sources import is_url
from mmrl.errors import UsageError
from mmrl.server.refusals import Refused
from mmrl.server.settings import Limits

S = TypeVar("S")
T = TypeVar("T")
FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF"})
_PLAIN_PPM = (b"P1", b"P2", b"P3")  # their decoder is Python, and slow
_MOST_SCANS = 100  # of a JPEG with the most pixels: each decodes the whole image once more, and usual files have ten or so
_SCAN = b"\xff\xda"  # begins one; other bytes of an image never look like it
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


class Decoding:
    """How images are read.

    Args:
        preprocess: of the backbone.
        allow_urls: whether texts that are URLs are fetched: of public addresses alone, as in `mmrl.classifier.web`.
    """

    def __init__(self, preprocess: Preprocess, limits: Limits, *, allow_urls: bool = False) -> None:
        self._preprocess, self._limits = preprocess, limits
        if Image.MAX_IMAGE_PIXELS and limits.pixels > 2 * Image.MAX_IMAGE_PIXELS:
            most = 2 * Image.MAX_IMAGE_PIXELS
            said = f"images of {limits.pixels:,} pixels cannot be served: Pillow opens none of more than {most:,}"
            raise UsageError(f"{said}. Give --max-pixels {most // 10**6} at most.")
        self._urls = Urls(most_bytes=limits.body) if allow_urls else None
        reads_heic()  # so that Pillow knows the format, where its library is there

    def fetches(self, source: bytes | str) -> bool:
        """Whether it is a URL that `fetched` should be asked for."""
        return self._urls is not None and is_url(source)

    def fetched(self, url: str) -> bytes:
        """The content at a URL; it may take seconds.

        Raises:
            Refused: URLs are not allowed.
            UsageError: it cannot be fetched.
        """
        if self._urls is None:
            raise Refused(400, "images are not fetched from URLs here; send the image itself, in base64.")
        return fetched(url, self._urls)

    def planes(self, source: bytes | str) -> Planes:
        """uint8 (3, size, size) of the bytes of an image file, of base64, or of a URL.

        Raises:
            Refused: a URL that is not allowed, too many pixels, or a format that is not served.
            UsageError: no image, or a broken one.
        """
        content = source if isinstance(source, bytes) else self._content(source)
        if not content:
            raise Refused(400, "the image is empty: it has no bytes.")
        self._look(content)
        return self._preprocess.central(to_rgb(content))

    def _content(self, text: str) -> bytes:
        if is_url(text):
            return self.fetched(text)
        prefix = _DATA_URL.match(text)
        try:
            return base64.b64decode("".join(text[prefix.end() if prefix else 0 :].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, "the image is not valid base64.") from error

    def _look(self, content: bytes) -> None:
        """Read the head of the file alone: what a few bytes would unpack to is known before anything is."""
        if content.startswith(_PLAIN_PPM):
            raise Refused(415, "PPM images written in digits are not served; send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.")
        try:
            with Image.open(io.BytesIO(content)) as image:
                kind, (width, height) = image.format or "", image.size
        except Image.DecompressionBombError as error:
            raise Refused(413, f"the image has too many pixels; at most {self._limits.pixels:,} are served.") from error
        except Exception:  # `to_rgb` says what is wrong with it
            return
        if kind not in FORMATS:
            raise Refused(415, f"images of the format {kind or 'unknown'} are not served; send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.")
        if width * height > self._limits.pixels:
            said = f"the image has {width} x {height} = {width * height:,} pixels"
            raise Refused(413, f"{said}; at most {self._limits.pixels:,} are served. Send a smaller one.")
        if kind in ("JPEG", "MPO") and content.count(_SCAN) * width * height > _MOST_SCANS * self._limits.pixels:
            raise Refused(422, "the JPEG image has too many scans, each of which would be decoded; save it again.")


def told(call: Callable[[S], T], source: S, which: str) -> T:
    """What `call` makes of a source; `which` image it is stands in front of a message."""
    try:
        return call(source)
    except Refused as error:
        raise Refused(error.status, f"{which}{error}", error.headers) from error
    except UsageError as error:
        raise Refused(422, f"{which}{str(error).replace(REMEDY, '').rstrip()}") from error
