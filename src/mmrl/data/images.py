"""Conversion of image files, PIL images, arrays and tensors to RGB."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mmrl.data.formats import EXTRA, reads_heic
from mmrl.errors import UsageError

if TYPE_CHECKING:
    import torch

ImageSource = Union[str, Path, bytes, bytearray, memoryview, IO[bytes], Image.Image, NDArray[Any], "torch.Tensor"]

REMEDY = "Replace it, remove it, or leave out what cannot be read: --skip-broken, in Python skip_broken=True."
_CHANNELS = (1, 2, 3, 4)  # grey, grey + alpha, RGB, RGB + alpha
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # brands of the file format, after "ftyp"
_PROGRAMS = ("EPS",)  # formats for which Pillow would start another program on the file


def to_rgb(source: ImageSource) -> Image.Image:
    """`source` as an 8-bit RGB image: rotated as its EXIF says, transparency over white, 16 bits scaled to 8.

    Args:
        source: a path, the bytes of an image file, an open file, a PIL image, or an array or tensor: (H, W), (H, W, C) or
            (C, H, W) with 1 to 4 channels; bytes 0 to 255, uint16, or floats 0 to 1.

    Raises:
        UsageError: the file is missing, not an image, broken or truncated, or the array has another shape or other values.
    """
    if isinstance(source, (str, Path)):
        return _open(Path(source), str(source), _decoded)
    if hasattr(source, "read"):
        source = file_content(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open(io.BytesIO(source), f"image of {memoryview(source).nbytes} bytes", _decoded)
    if isinstance(source, Image.Image):
        image = _decoded(source, getattr(source, "filename", "") or "image")
        return image.copy() if image is source else image
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if hasattr(source, "detach"):  # a tensor; torch is not imported for the others
        tensor = source.detach().cpu()
        return _from_array((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    raise UsageError(f"an image must be a path, bytes, an open file, a PIL image, an array or a tensor, not {type(source).__name__}.")


def file_content(file: Any) -> bytes:
    """What is in an open file from where it stands, to which it is set back if it can be, so that it may be read again.

    Raises:
        UsageError: it was opened as text, or cannot be read.
    """
    name = getattr(file, "name", None) or type(file).__name__
    try:
        place = file.tell() if hasattr(file, "seekable") and file.seekable() else None
        content = file.read()
        if place is not None:
            file.seek(place)
    except UnicodeDecodeError as error:
        raise UsageError(f"the open file {name} is read as text; open it with mode 'rb'.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"the open file {name} cannot be read: {error}. {REMEDY}") from error
    if not isinstance(content, (bytes, bytearray)):
        raise UsageError(f"the open file {name} is read as text; open it with mode 'rb'.")
    return bytes(content)


def as_published(path: Path) -> Image.Image:
    """The image as the authors' code decodes it, for published data sets: Pillow's `convert("RGB")` and nothing else.

    EXIF rotation is ignored, transparency is dropped without a background, and 16-bit grey is clipped to 255.

    Raises:
        UsageError: the file is missing, not an image, broken or truncated.
    """

    def plain(image: Image.Image, name: str) -> Image.Image:
        image = _loaded(image, name)
        return image if image.mode == "RGB" else image.convert("RGB")  # of an RGB image it would be a copy

    return _open(path, str(path), plain)


def _open(file: Path | io.BytesIO, name: str, decode: Callable[[Image.Image, str], Image.Image]) -> Image.Image:
    try:
        if isinstance(file, Path) and not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise UsageError(f"image {name} {what}. Pass the path of an image file.")
        with _known(file, name) as image:
            return decode(image, name)
    except UnidentifiedImageError as error:
        raise UsageError(f"{name} is not an image that can be read, or is broken. {REMEDY}") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} is too large: {error}") from error
    except UsageError:
        raise
    except Exception as error:  # Pillow's readers raise errors of any kind on bad bytes
        raise UsageError(f"{name} cannot be read: {error}. {REMEDY}") from error


def _known(file: Path | io.BytesIO, name: str) -> Image.Image:
    """The image file, opened; what phones take (HEIC) with the library of the extra, which is imported for the first of them."""
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        if not _is_heic(file):
            raise
        if not reads_heic():
            raise UsageError(f"{name} is a HEIC photo, and the library that reads it is not installed: {EXTRA}") from error
        return Image.open(file)


def _is_heic(file: Path | io.BytesIO) -> bool:
    start = file.getvalue()[:12] if isinstance(file, io.BytesIO) else file.open("rb").read(12)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC


def _loaded(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise UsageError(f"{name} is empty: {image.size[0]} x {image.size[1]} pixels.")
    if image.format in _PROGRAMS:
        raise UsageError(f"{name} is PostScript, which is a program and is not run. Save it as PNG or JPEG.")
    try:
        image.load()
    except Exception as error:
        raise UsageError(f"{name} is broken or truncated ({error}). {REMEDY}") from error
    return image


def _decoded(image: Image.Image, name: str) -> Image.Image:
    image = _loaded(image, name)
    with contextlib.suppress(Exception):  # bad EXIF: the pixels are fine, the notes beside them are not
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose copies upright ones, too
            image = ImageOps.exif_transpose(image)
    return _eight_bits(image, name)


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scaled(np.asarray(image), name)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        whole = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    return image.convert("RGB")


def _scaled(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Grey values of any range as bytes: 0 to 1 (floats), 0 to 255, or 0 to 65535, whichever holds them."""
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise UsageError(f"{name} has values from {values.min()} to {values.max()}; 0 to 65535 can be shown. Scale them first.")
    top = values.max()
    factor = 255.0 if values.dtype.kind == "f" and top <= 1 else (1.0 if top <= 255 and values.dtype != np.uint16 else 255 / 65535)
    return np.rint(values.astype(np.float64) * factor).astype(np.uint8)


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        array = np.moveaxis(array, 0, 2)
    if array.ndim not in (2, 3) or 0 in shape or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        hint = " Pass one image at a time." if array.ndim == 4 else ""
        raise UsageError(f"an image array must be (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels; this one is {shape}.{hint}")
    pixels = _array_bytes(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return _eight_bits(Image.fromarray(np.ascontiguousarray(pixels)), "image array")


def _array_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if array.dtype == np.uint16:
        return np.rint(array / 257).astype(np.uint8)
    if array.dtype.kind in "iu" and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and np.isfinite(array).all() and low >= -1e-3 and high <= 1 + 1e-3:
        return np.rint(np.clip(array, 0, 1).astype(np.float64) * 255).astype(np.uint8)
    allowed = "whole numbers must be 0 to 255, floats 0 to 1 (not normalised)"
    raise UsageError(f"an image array of {array.dtype} has values from {low} to {high}; {allowed}. Scale it first.")
