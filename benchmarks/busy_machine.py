"""Measure what other processes on the same CPUs cost: threads that spin, and threads that sleep.

`tl-advise` of a folder with an empty cache, on all CPUs, beside 0, 1 and 2 processes that never
rest. By default torch's OpenMP spins while its threads wait for each other. Where others keep the
CPUs busy, the commands let them sleep (`strategies.core.limits.thread_settings`). Both are
measured in turn; median and range are printed.

Run:      python benchmarks/busy_machine.py --images ../shared/data/hymenoptera [--repeat 3]
Cost:     10 minutes on 2 cores that are idle otherwise.
Expected: docs/benchmarks/speed.md, "Beside other processes".
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "from advisor.cli.app import tl_advise; tl_advise()"
BUSY = "while True: pass"
SPIN = {"GOMP_SPINCOUNT": "300000"}
"""The default of GNU's OpenMP, stated: then it counts whatever the waiting policy is."""
WAITING = {"spin": SPIN, "as the command chooses": {}}
SETTLED_S = 0.5
"""Seconds after the start of the other processes."""


@contextmanager
def busy_processes(n: int) -> Iterator[None]:
    """Keep `n` processes busy beside this one."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(n)]
    time.sleep(SETTLED_S)
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def seconds_of_advice(images: Path, input_px: int, variables: dict[str, str]) -> float:
    """Return the wall-clock seconds of ``tl-advise`` with an empty cache."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as cache:
        options = ["--cache-dir", cache, "--input-px", str(input_px), "--json"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(images), *options],
            env=inherited | variables,
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--input-px", type=int, default=224)
    parser.add_argument("--others", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args(argv)
    print(f"| busy processes beside it | {' | '.join(f'{name}, seconds' for name in WAITING)} |")
    print("|---" * (1 + len(WAITING)) + "|")
    for n in args.others:
        took: dict[str, list[float]] = {name: [] for name in WAITING}
        with busy_processes(n):
            for _ in range(args.repeat):
                for name, variables in WAITING.items():
                    took[name].append(seconds_of_advice(args.images, args.input_px, variables))
        cells = [
            f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"
            for found in took.values()
        ]
        print(f"| {n} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
