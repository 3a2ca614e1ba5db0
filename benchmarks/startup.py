"""Seconds from the shell to the end of `mmrl --help`: `python -m benchmarks.startup [--runs 9] [--limit 0.5]`."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "from mmrl.cli.main import run; run()", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--limit", type=float, default=0.5, help="exit with 1 when the median is above this many seconds")
    options = parser.parse_args()
    seconds()  # the first run compiles the byte code
    times = sorted(seconds() for _ in range(options.runs))
    median = statistics.median(times)
    print(f"mmrl --help: median {median:.3f} s, fastest {times[0]:.3f} s, slowest {times[-1]:.3f} s of {options.runs} runs")
    return 1 if median > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
