"""Seconds from the shell to the end of `mmrl --help`, beside an interpreter that does nothing.

python -m benchmarks.startup [--runs 9] [--limit 0.5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

HELP = "from mmrl.cli.main import run; run()"


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--limit", type=float, default=0.5, help="exit with 1 when the median is above this many seconds")
    options = parser.parse_args()
    seconds(HELP)  # the first run compiles the byte code
    runs = [(seconds("pass"), seconds(HELP)) for _ in range(options.runs)]  # in turn, so that both meet the same machine
    bare, times = (sorted(column) for column in zip(*runs, strict=True))
    median = statistics.median(times)
    print(f"python -c pass: median {statistics.median(bare):.3f} s, fastest {bare[0]:.3f} s")
    print(f"mmrl --help: median {median:.3f} s, fastest {times[0]:.3f} s, slowest {times[-1]:.3f} s of {options.runs} runs")
    return 1 if median > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
