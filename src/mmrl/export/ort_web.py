"""The files of ONNX Runtime for browsers, which come from npm: they are not in this package, and only the published ones are taken."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mmrl.clip import identities
from mmrl.errors import MmrlError, UsageError
from mmrl.files import read_regular, user_path, write_bytes

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512 of its archive
FILES = {  # the build for one thread of the processor, which needs no headers of the server; SHA-256
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
PATIENCE = 300.0  # seconds for 33 MB
MOST = 2**27  # bytes of the archive or of a file in it
REMEDY = f"Run `npm install {PACKAGE}` anywhere, and give --ort node_modules/onnxruntime-web/dist."


def ort_files(given: str | Path | None = None) -> dict[str, bytes]:
    """The files by name, from a folder or archive that the user has, from the cache, or from npm.

    Args:
        given: a folder `dist` of the npm package, the package's own folder, or the .tgz of `npm pack`; default: $MMRL_CACHE or the user's
            cache folder, where they are kept after npm was asked once.

    Raises:
        UsageError: they are not in `given`, or are of another version; or npm is missing.
        MmrlError: npm failed, or sent something else.
    """
    if given is not None:
        place = user_path(given)
        return _of_archive(place) if place.suffix == ".tgz" else _of_folder(place)
    kept = identities.folder().parent / PACKAGE
    if all((kept / name).is_file() for name in FILES):
        found = {name: read_regular(kept / name, what="the file", most=MOST) for name in FILES}
        if not _wrong(found):
            return found
    found = _from_npm()
    try:
        for name, content in found.items():
            write_bytes(kept / name, content)
    except MmrlError:  # a cache that cannot be written to: npm is asked again next time
        pass
    return found


def _wrong(found: dict[str, bytes]) -> list[str]:
    """Names of files that are not the published ones."""
    return [name for name, digest in FILES.items() if hashlib.sha256(found[name]).hexdigest() != digest]


def _of_folder(folder: Path) -> dict[str, bytes]:
    places = [place for place in (folder, folder / "dist", folder / "package" / "dist") if (place / next(iter(FILES))).is_file()]
    if not places:
        raise UsageError(f"--ort {folder} has no {next(iter(FILES))}. {REMEDY}")
    found = {name: read_regular(places[0] / name, what="the file of onnxruntime-web", most=MOST) for name in FILES}
    if wrong := _wrong(found):
        raise UsageError(f"{places[0] / wrong[0]} is not that of {PACKAGE}, the version that the page was tested with. {REMEDY}")
    return found


def _of_archive(path: Path) -> dict[str, bytes]:
    content = read_regular(path, what="the archive of onnxruntime-web", most=MOST)
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
        raise UsageError(f"{path} is not the archive of {PACKAGE}: its SHA-512 is another. Make it with `npm pack {PACKAGE}`.")
    with tarfile.open(path) as archive:
        readers = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: reader.read() for name, reader in readers.items() if reader is not None}


def _from_npm() -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError(f"a page needs {PACKAGE}, and npm, which fetches it, is not here. On a machine that has npm: {REMEDY}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [npm, "pack", PACKAGE, "--ignore-scripts", "--silent"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired as error:
            raise MmrlError(f"npm did not fetch {PACKAGE} within {PATIENCE:.0f} s. {REMEDY}") from error
        made = list(Path(folder).glob("*.tgz"))
        if done.returncode or not made:
            said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
            raise MmrlError(f"npm could not fetch {PACKAGE}: {said.strip()}. With a network, or elsewhere: {REMEDY}")
        try:
            return _of_archive(made[0])
        except UsageError as error:
            raise MmrlError(f"npm sent something else than the published {PACKAGE}, and nothing of it is used: {error}") from error
