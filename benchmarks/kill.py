"""Kill runs (SIGKILL) at random moments, resume them, and compare them with an uninterrupted run.

The number of trials is limited, not the time, so the same seed must lead to the same trials and
the same best trial. A first run fills the cache. The second run is the reference: its cache is
full, as for every killed run. Moments of kills are drawn uniformly from its duration, from the
appearance of ``run.json`` in its folder to its end. One JSON line per kill and a summary are
printed.

Run:      python benchmarks/kill.py DATA --out FOLDER --kills 20 --trials 4 --input-px 64
Cost:     (kills + 2) runs; 32 minutes on one core in the configuration of docs/benchmarks/runs.md.
Expected: "same" is true for every kill. The exit code is 1 if anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rows import read_rows

COMMAND = [sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()"]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start tl-auto with its output appended to a file."""
    with log.open("ab") as file:
        return subprocess.Popen([*COMMAND, *arguments], stdout=file, stderr=file)


def begin(arguments: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a run and wait until its ``run.json`` exists: before that, nothing can be lost."""
    process = start(arguments, log)
    while not (folder / "run.json").exists() and process.poll() is None:
        time.sleep(0.02)
    return process


def trials_of(run: Path) -> list[dict[str, Any]]:
    """Return the trials of a run without their seconds: these must not depend on a kill."""
    rows = read_rows(run / "trials.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 if a resumed run differs from the reference, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="dataset folder or manifest")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--input-px", type=int, default=64)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--no-control", action="store_true", help="no random-init control")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder to work in")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    log = given.out / "output.log"

    def run_arguments(folder: Path) -> list[str]:
        values = {"--trials": given.trials, "--input-px": given.input_px, "--time": "2h"}
        values |= {"--strategy": given.strategy, "--out": folder}
        values |= {"--cache-dir": given.out / "cache"}
        flat = [str(v) for pair in values.items() for v in pair]
        flat += ["--no-control"] if given.no_control else []
        return ["run", str(given.data), "--quiet", *flat]

    for name in ("warm", "alone"):
        process = begin(run_arguments(given.out / name), given.out / name, log)
        begun = time.monotonic()
        if process.wait():
            raise SystemExit(f"The uninterrupted run failed:\n{log.read_text()[-1000:]}")
        whole_s = time.monotonic() - begun
    expected = trials_of(given.out / "alone")
    best = json.loads((given.out / "alone/outcome.json").read_text())["best"]
    rng = random.Random(given.seed)
    n_bad = 0
    for number in range(given.kills):
        folder = given.out / f"killed-{number}"
        process = begin(run_arguments(folder), folder, log)
        moment_s = rng.uniform(0.0, whole_s)
        try:
            process.wait(moment_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        before = trials_of(folder)
        phase = "before the search"
        if (folder / "state.json").exists():
            phase = json.loads((folder / "state.json").read_text())["phase"]
        code = start(["resume", str(folder), "--quiet", "--time", "2h"], log).wait()
        after = trials_of(folder)
        found = json.loads((folder / "outcome.json").read_text())["best"] if code == 0 else None
        kept = after[: len(before)] == before
        same = code == 0 and kept and after == expected and found == best
        n_bad += not same
        row = {"kill": number, "moment_s": round(moment_s, 2), "phase": phase, "kept": len(before)}
        print(json.dumps({**row, "exit": code, "same": same}), flush=True)
    print(json.dumps({"kills": given.kills, "whole_s": round(whole_s, 1), "differ": n_bad}))
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
