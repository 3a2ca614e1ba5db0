"""`to_rgb`: every kind of picture becomes what a person would see; `as_published`: what the authors' code makes of it. What is no
picture is refused by name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrl.data import load_dataset
from mmrl.data.images import as_published, to_rgb
from mmrl.errors import UsageError
from tests.trees import make_tree

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def pixels(source) -> np.ndarray:  # type: ignore[no-untyped-def]
    image = to_rgb(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def encoded(image: Image.Image, kind: str, **options) -> bytes:  # type: ignore[no-untyped-def]
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        PHOTO,
        PHOTO.transpose(2, 0, 1),
        PHOTO.astype(np.int64),
        PHOTO.astype(np.uint16) * 257,
        PHOTO / 255,
        (PHOTO / 255).astype(np.float32).transpose(2, 0, 1),
        torch.from_numpy(PHOTO),
        torch.from_numpy(PHOTO).permute(2, 0, 1).float() / 255,
        torch.from_numpy(PHOTO).permute(2, 0, 1).double().requires_grad_(False) / 255,
        Image.fromarray(PHOTO),
        encoded(Image.fromarray(PHOTO), "PNG"),
        encoded(Image.fromarray(PHOTO), "TIFF"),
        encoded(Image.fromarray(PHOTO), "WEBP", lossless=True),
    ],
    ids=lambda source: f"{type(source).__name__}-{getattr(source, 'dtype', '')}",
)
def test_the_same_photo_in_every_form(source) -> None:  # type: ignore[no-untyped-def]
    assert (pixels(source) == PHOTO).all()


def test_half_precision_tensors_and_gradients() -> None:
    tensor = (torch.from_numpy(PHOTO).permute(2, 0, 1) / 255).to(torch.bfloat16).requires_grad_()
    assert np.abs(pixels(tensor).astype(int) - PHOTO).max() <= 1


def test_paths_as_strings_and_paths(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "p.png")
    assert (pixels(tmp_path / "p.png") == PHOTO).all() and (pixels(str(tmp_path / "p.png")) == PHOTO).all()


def test_grey_one_bit_and_booleans() -> None:
    grey = PHOTO[..., 0]
    for source in (grey, grey[..., None], grey[None], Image.fromarray(grey), encoded(Image.fromarray(grey), "PNG")):
        assert (pixels(source) == grey[..., None]).all()
    bits = grey > 127
    for source in (bits, Image.fromarray(bits), encoded(Image.fromarray(bits), "PNG")):
        assert (pixels(source) == bits[..., None] * 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert pixels(encoded(Image.fromarray(deep), kind))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert pixels(deep)[0, :, 0].tolist() == [0, 1, 128, 255]
    dark = np.array([[0, 200]], np.uint16)  # so dark that the values would fit into bytes
    assert pixels(encoded(Image.fromarray(dark), kind))[0, :, 0].tolist() == [0, 1]
    assert pixels(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    assert pixels(Image.fromarray(np.array([[0, 65535]], np.int32)))[0, :, 0].tolist() == [0, 255]


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert pixels(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    for kind in ("PNG", "GIF"):
        assert pixels(encoded(image, kind, transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_transparency_lies_over_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    for source in (rgba, Image.fromarray(rgba), encoded(Image.fromarray(rgba), "PNG"), torch.from_numpy(rgba)):
        assert pixels(source).tolist() == [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]]
    assert pixels(Image.fromarray(rgba).convert("LA")).tolist()[0][1] == [255, 255, 255]
    assert pixels(Image.fromarray(rgba).convert("RGBa")).tolist()[0][1] == [255, 255, 255]
    keyed = encoded(Image.fromarray(rgba[..., :3]), "PNG", transparency=(255, 0, 0))
    assert pixels(keyed).tolist()[0] == [[255, 255, 255], [0, 0, 0], [0, 0, 0]]


def test_cmyk_jpeg() -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    assert np.abs(pixels(encoded(red, "JPEG", quality=95)).astype(int) - [220, 30, 40]).max() < 8
    assert np.abs(pixels(red).astype(int) - [220, 30, 40]).max() < 3


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    data = encoded(Image.fromarray(PHOTO), "PNG", exif=exif)
    assert (pixels(data) == np.rot90(PHOTO, -1)).all()


def test_an_open_image_is_not_changed() -> None:
    image = Image.fromarray(PHOTO)
    to_rgb(image).putpixel((0, 0), (1, 2, 3))
    assert (np.asarray(image) == PHOTO).all()


def turned(orientation: int) -> bytes:
    """A JPEG that says how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(PHOTO), "JPEG", exif=exif, quality=95)


def with_palette() -> Image.Image:
    image = Image.new("P", (4, 2))
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    image.putdata([0, 1, 2, 0, 1, 2, 0, 1])
    return image


RGBA = np.dstack([PHOTO, RNG.integers(0, 256, PHOTO.shape[:2], dtype=np.uint8)])
DEEP = np.array([[0, 100, 255, 256, 32896, 65535]], np.uint16)
# the bytes of a file, and whether a person sees another picture in it than the authors' code does
FILES = {
    **{f"EXIF orientation {way}": (turned(way), True) for way in range(2, 9)},
    "EXIF upright": (turned(1), False),
    "RGBA": (encoded(Image.fromarray(RGBA), "PNG"), True),
    "grey with alpha": (encoded(Image.fromarray(RGBA).convert("LA"), "PNG"), True),
    "palette": (encoded(with_palette(), "PNG"), False),
    "palette, one colour transparent": (encoded(with_palette(), "PNG", transparency=0), True),
    "palette, shades of transparency": (encoded(with_palette(), "PNG", transparency=bytes([0, 128, 255])), True),
    "RGB, one colour transparent": (encoded(Image.fromarray(PHOTO), "PNG", transparency=tuple(PHOTO[0, 0].tolist())), True),
    "GIF": (encoded(with_palette(), "GIF"), False),
    "GIF, one colour transparent": (encoded(with_palette(), "GIF", transparency=1), True),
    "16-bit grey PNG": (encoded(Image.fromarray(DEEP), "PNG"), True),
    "16-bit grey TIFF": (encoded(Image.fromarray(DEEP), "TIFF"), True),
    "CMYK JPEG": (encoded(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"), False),
    "1-bit": (encoded(Image.fromarray(PHOTO[..., 0] > 127), "PNG"), False),
    "grey JPEG": (encoded(Image.fromarray(PHOTO[..., 0]), "JPEG"), False),
    "JPEG": (encoded(Image.fromarray(PHOTO), "JPEG"), False),
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", FILES)
def test_published_sets_are_decoded_as_their_authors_do_and_folders_as_people_see_them(tmp_path: Path, kind: str) -> None:
    content, differs = FILES[kind]
    name = make_tree("dtd", tmp_path, per_class=4, classes=2) / "images/banded/banded_0005.jpg"
    name.write_bytes(content)  # Pillow goes by the content
    with Image.open(name) as image:
        expected = np.asarray(image.convert("RGB"))
    published = load_dataset("dtd", root=tmp_path)
    (item,) = [item for item in (*published.train, *published.val, *published.test) if item.key == "banded/banded_0005.jpg"]
    decoded = published.image(item)
    assert decoded.mode == "RGB" and np.array_equal(np.asarray(decoded), expected)

    folder = load_dataset(tmp_path / "dtd/images")
    (item,) = [item for item in (*folder.train, *folder.val, *folder.test) if item.key == "banded/banded_0005.jpg"]
    seen = np.asarray(folder.image(item))
    assert np.array_equal(seen, pixels(content)) and np.array_equal(seen, expected) != differs


@pytest.mark.parametrize("decode", [to_rgb, as_published])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_named(tmp_path: Path, kind: str, decode) -> None:  # type: ignore[no-untyped-def]
    noisy = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noisy, kind)
    path = tmp_path / f"photo.{kind.lower()}"
    for part in (0.6, 0.05):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(UsageError, match=f"photo.{kind.lower()}"):
            decode(path)


@pytest.mark.parametrize("decode", [to_rgb, as_published])
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not an image"), (b"hello, I am a text", "is not an image"), (None, "does not exist"), ("folder", "is a folder")],
)
def test_what_is_no_image_file(tmp_path: Path, content, message: str, decode) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "photo.jpg"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"photo.jpg.*{message}"):
        decode(path)


@pytest.mark.parametrize("decode", [to_rgb, as_published])
def test_paths_that_the_system_refuses_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode) -> None:  # type: ignore[no-untyped-def]
    long, circle, locked = tmp_path / f"{'x' * 300}.jpg", tmp_path / "circle.jpg", tmp_path / "locked.jpg"
    circle.symlink_to(circle)
    locked.write_bytes(encoded(Image.fromarray(PHOTO), "JPEG"))
    opened = Image.open

    def refusing(file, *given, **options):  # type: ignore[no-untyped-def]
        if str(file).endswith("locked.jpg"):
            raise PermissionError(13, os.strerror(13), str(file))
        return opened(file, *given, **options)

    monkeypatch.setattr(Image, "open", refusing)
    for path in (long, circle, locked):
        with pytest.raises(UsageError) as caught:
            decode(path)
        assert str(path) in str(caught.value)


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UsageError, match="too large"):
        to_rgb(encoded(Image.fromarray(PHOTO), "PNG"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 3, 4, 4)), r"this one is \(2, 3, 4, 4\). Pass one image at a time"),
        (np.zeros((5, 6, 7)), r"this one is \(5, 6, 7\)"),
        (np.zeros(4), r"this one is \(4,\)"),
        (np.zeros((0, 4, 3)), r"this one is \(0, 4, 3\)"),
        (np.full((4, 4, 3), -1.5), "values from -1.5 to -1.5; whole numbers must be 0 to 255, floats 0 to 1"),
        (np.full((4, 4, 3), np.nan), "floats 0 to 1"),
        (np.full((4, 4, 3), 256), "int64 has values from 256"),
        (np.zeros((4, 4), complex), "complex128"),
        (torch.full((3, 4, 4), 2.1), "floats 0 to 1"),
        (Image.fromarray(np.full((2, 2), -4, np.int32)), "values from -4"),
        (Image.new("RGB", (0, 3)), "is empty: 0 x 3"),
        (["a.png"], "not list"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_image(source, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        to_rgb(source)
