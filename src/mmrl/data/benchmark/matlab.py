"""Variables of MATLAB files, read by scipy in a subprocess, since some truncated or corrupted files crash its reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # seconds; these files have about 200 kB
MOST = 10**6  # values; no list of images has more than 10^5
MEMORY = 4 * 2**30  # bytes of address space, if the system can limit it: a small file may decompress to any size


def read_variable(path: Path, name: str) -> list[Any]:
    """The variable `name`, flattened: numbers and strings, cells as lists, structs as dicts.

    Raises:
        ValueError: the file is damaged, or does not have the variable.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", __name__, str(path), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"reading it takes more than {PATIENCE:.0f} seconds") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ValueError(said[-1] if said else f"its reader ended with {done.returncode}")
    found: list[Any] = json.loads(done.stdout)
    return found


def _plain(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.void) and value.dtype.names:
        return {field: _plain(value[field]) for field in value.dtype.names}
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.ravel()]
    return value.item() if isinstance(value, np.generic) else value


def main(path: str, name: str) -> None:
    """Print the variable as JSON."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not available on this system
        pass
    import numpy as np
    from scipy.io import loadmat

    content = loadmat(path, squeeze_me=True)
    if name not in content:
        sys.exit(f"it has no variable '{name}'")
    found = np.asarray(content[name]).ravel()
    if len(found) > MOST:
        sys.exit(f"'{name}' has {len(found):,} values; at most {MOST:,} are read")
    json.dump([_plain(each) for each in found], sys.stdout, allow_nan=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
