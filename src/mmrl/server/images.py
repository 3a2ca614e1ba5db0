"""From what a request holds to what the backbone takes, within limits; runs in threads of its own."""

from __future__ import annotations

import base64
import binascii
import io
import re

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

FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF"})
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


class Decoding:
    """How images are read.

    Args:
        preprocess: of the backbone.
        allow_urls: whether texts that are URLs are fetched: of public addresses alone, as in `mmrl.classifier.web`.
    """

    def __init__(self, preprocess: Preprocess, limits: Limits, *, allow_urls: bool = False) -> None:
        self._preprocess, self._limits = preprocess, limits
        self._urls = Urls(most_bytes=limits.body) if allow_urls else None
        reads_heic()  # so that Pillow knows the format, where its library is there

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
            if self._urls is None:
                raise Refused(400, "images are not fetched from URLs here; send the image itself, in base64.")
            return fetched(text, self._urls)
        prefix = _DATA_URL.match(text)
        try:
            return base64.b64decode("".join(text[prefix.end() if prefix else 0 :].split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, "the image is not valid base64.") from error

    def _look(self, content: bytes) -> None:
        """Read the head of the file alone: what a few bytes would unpack to is known before anything is."""
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


def decoded(decoding: Decoding, source: bytes | str, which: str) -> Planes:
    """As `Decoding.planes`; `which` image it is stands in front of a message."""
    try:
        return decoding.planes(source)
    except Refused as error:
        raise Refused(error.status, f"{which}{error}", error.headers) from error
    except UsageError as error:
        raise Refused(422, f"{which}{str(error).replace(REMEDY, '').rstrip()}") from error
