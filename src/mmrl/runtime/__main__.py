"""`python -m mmrl.runtime FOLDER IMAGE...`: classify images with an exported classifier."""

from __future__ import annotations

import argparse
import json

from mmrl.console.boundary import guarded
from mmrl.data.sources import given_images
from mmrl.runtime.classifier import load


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mmrl.runtime", description="Classify images with an exported classifier.")
    parser.add_argument("folder", help="folder that `mmrl export` wrote")
    parser.add_argument("images", nargs="+", help="image files, folders of them, or patterns such as 'photos/*.jpg'")
    parser.add_argument("--classes", help="names to choose from: 'a,b,c' or a file; trained or not")
    parser.add_argument("--top", type=int, default=3, help="how many classes to show")
    parser.add_argument("--json", action="store_true", help="one JSON object per image")
    given = parser.parse_args()
    classifier = load(given.folder)
    names = given_images(given.images).names
    for name, ranked in zip(names, classifier.rank(given.images, given.classes, top=given.top), strict=True):
        if given.json:
            print(json.dumps({"image": name, "predictions": [each._asdict() for each in ranked]}, ensure_ascii=False))
        else:
            print(f"{name}: " + ", ".join(f"{each.name} {each.probability:.1%}" for each in ranked))


if __name__ == "__main__":
    guarded(main)
