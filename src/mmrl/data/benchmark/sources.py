"""Where the files of each data set come from: the authors' archives, by their usual names, and what they contain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmrl.data.benchmark.entry import Entry
from mmrl.data.benchmark.unpack import unpack_train, unpack_val

COOP = "CoOp's page on data sets"


@dataclass(frozen=True)
class Piece:
    """One file or folder of a layout.

    Attributes:
        target: its path below the data set's folder.
        files: usual names of the file that contains it, an archive or the file itself; the latter is always searched for.
        names: its possible names in the archive; by default the last part of `target`.
        home: where to get it, in words.
        unpack: for an archive with another structure than the layout: (archive, folder, files in `with_files`).
        with_files: further files that `unpack` needs.
    """

    target: str
    files: tuple[str, ...]
    home: str
    names: tuple[str, ...] = ()
    unpack: Callable[[Path, Path, list[Path]], None] | None = None
    with_files: tuple[str, ...] = ()

    @property
    def called(self) -> tuple[str, ...]:
        return self.names or (PurePosixPath(self.target).name,)

    @property
    def wanted(self) -> str:
        """The files to get, in words."""
        return " or ".join(self.files) + "".join(f" and {name}" for name in self.with_files)


@dataclass(frozen=True)
class Sources:
    """The pieces of a data set. `torchvision`: name of the class in `torchvision.datasets` that can download it, if any."""

    pieces: tuple[Piece, ...]
    torchvision: str | None = None


_CLASSNAMES = Piece("classnames.txt", ("classnames.txt",), COOP)
_ILSVRC = "ImageNet's site (ILSVRC2012, after registration)"
_KIT = ("ILSVRC2012_devkit_t12.tar.gz",)
_PETS = "the Oxford-IIIT Pet Dataset's page"
_CARS = "any copy of Stanford Cars, as its authors' page is gone"
_FLOWERS = "the 102 Category Flower Dataset's page"
_AIRCRAFT = ("images", "variants.txt", *(f"images_variant_{split}.txt" for split in ("train", "val", "test")))
_SUN = "the SUN Database's page"
_UCF = "the UCF101 page (action recognition splits)"

SOURCES: dict[str, Sources] = {
    "imagenet": Sources((
        Piece("images/train", ("ILSVRC2012_img_train.tar",), _ILSVRC, unpack=unpack_train),
        Piece("images/val", ("ILSVRC2012_img_val.tar",), _ILSVRC, unpack=unpack_val, with_files=_KIT),
        _CLASSNAMES,
    )),
    "caltech101": Sources((
        Piece("101_ObjectCategories", ("101_ObjectCategories.tar.gz", "caltech-101.zip"), "the Caltech 101 record of CaltechDATA"),
    ), "Caltech101"),
    "oxford_pets": Sources((
        Piece("images", ("images.tar.gz",), _PETS),
        Piece("annotations", ("annotations.tar.gz",), _PETS),
    ), "OxfordIIITPet"),
    "stanford_cars": Sources((
        Piece("cars_train", ("cars_train.tgz",), _CARS),
        Piece("cars_test", ("cars_test.tgz",), _CARS),
        Piece("devkit", ("car_devkit.tgz",), _CARS),
        Piece("cars_test_annos_withlabels.mat", ("cars_test_annos_withlabels.mat",), _CARS),
    )),
    "oxford_flowers": Sources((
        Piece("jpg", ("102flowers.tgz",), _FLOWERS),
        Piece("imagelabels.mat", ("imagelabels.mat",), _FLOWERS),
        Piece("cat_to_name.json", ("cat_to_name.json",), COOP),
    ), "Flowers102"),
    "food101": Sources(tuple(
        Piece(target, ("food-101.tar.gz",), "the Food-101 page") for target in ("images", "meta")
    ), "Food101"),
    "fgvc_aircraft": Sources(tuple(
        Piece(target, ("fgvc-aircraft-2013b.tar.gz",), "the FGVC-Aircraft Benchmark's page") for target in _AIRCRAFT
    ), "FGVCAircraft"),
    "sun397": Sources((
        Piece("SUN397", ("SUN397.tar.gz",), _SUN),
        Piece("ClassName.txt", ("Partitions.zip",), _SUN),
        Piece("Training_01.txt", ("Partitions.zip",), _SUN),
        Piece("Testing_01.txt", ("Partitions.zip",), _SUN),
    ), "SUN397"),
    "dtd": Sources((
        Piece("images", ("dtd-r1.0.1.tar.gz", "dtd-r1.0.tar.gz"), "the Describable Textures Dataset's page"),
    ), "DTD"),
    "eurosat": Sources((
        Piece("2750", ("EuroSAT.zip", "EuroSAT_RGB.zip"), "the EuroSAT record of Zenodo", ("2750", "EuroSAT_RGB")),
    ), "EuroSAT"),
    "ucf101": Sources((
        Piece("UCF-101-midframes", ("UCF-101-midframes.zip",), COOP),
        Piece("ucfTrainTestlist", ("UCF101TrainTestSplits-RecognitionTask.zip",), _UCF),
    )),
    "imagenetv2": Sources((
        Piece("imagenetv2-matched-frequency-format-val", ("imagenetv2-matched-frequency.tar.gz",), "the ImageNetV2 repository"),
        _CLASSNAMES,
    )),
    "imagenet_sketch": Sources((
        Piece("images", ("ImageNet-Sketch.zip",), "the ImageNet-Sketch repository", ("sketch", "images")),
        _CLASSNAMES,
    )),
    "imagenet_a": Sources((
        Piece("imagenet-a", ("imagenet-a.tar",), "the repository of Natural Adversarial Examples"),
        _CLASSNAMES,
    )),
    "imagenet_r": Sources((
        Piece("imagenet-r", ("imagenet-r.tar",), "the ImageNet-R repository"),
        _CLASSNAMES,
    )),
}  # fmt: skip


def pieces_of(entry: Entry) -> tuple[Piece, ...]:
    """All pieces of a data set; for one registered from outside this package, only the published split."""
    known = SOURCES[entry.name].pieces if entry.name in SOURCES else ()
    return (*known, Piece(entry.split, (entry.split,), COOP)) if entry.split else known


def find_file(names: tuple[str, ...], places: list[Path]) -> Path | None:
    """The first file in `places` that has one of these names, ignoring case."""
    for place in places:
        here = {path.name.lower(): path for path in sorted(place.iterdir()) if path.is_file()} if place.is_dir() else {}
        for name in names:
            if name.lower() in here:
                return here[name.lower()]
    return None
