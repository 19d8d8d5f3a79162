"""Measure whether ``tl-auto run --time`` keeps its time limit, reports included.

Every run is timed from outside, from the start of its process to its end. One JSON line per run
is appended to --out; runs that have a line already are skipped. A run may end early only if it
reports that nothing was left to try: no trial could beat the best one by enough to count, or no
strategy that may still win was left. These runs are counted separately. ``load`` is the mean
number of runnable processes over the last minute. On a shared machine a run gets less processor
time (``cpu_s``) than wall-clock time (``took_s``). Test accuracy, the advice and the first
training run are recorded too. With several ``--code`` folders (checkouts of versions of the
program) the versions take turns on every case.

Run:      python benchmarks/budget.py --data ../shared/data --sets hymenoptera flowers5 \
              --times 1m 3m
Cost:     the sum of the limits, on one core.
Expected: every run ends within max(5%, 5 s) of its limit (docs/benchmarks/runs.md).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rows import HERE, Row, append_row, read_rows

from strategies.registry import get_strategy

COMMAND = [sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()"]
NOTHING_LEFT = ("unbeatable", "no_candidate")
SECONDS = {"s": 1, "m": 60, "h": 3600}


def measure(
    data: Path,
    limit: str,
    seed: int,
    *,
    code: Path,
    cache: Path | None,
    input_px: int | None,
) -> Row:
    """Run ``tl-auto run`` once and return its row: seconds, limit, trials and best strategy.

    Parameters
    ----------
    code
        Checkout of the program.
    cache
        Cache folder of the run; None: a new one.
    """
    limit_s = float(limit[:-1]) * SECONDS[limit[-1]]
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        folder = (cache or Path(name) / "cache").resolve()
        arguments = ["run", str(data.resolve()), "--out", str(run), "--cache-dir", str(folder)]
        arguments += ["--time", limit, "--seed", str(seed), "--quiet"]
        arguments += [] if input_px is None else ["--input-px", str(input_px)]
        begun, used_s = time.monotonic(), _children_s()
        done = subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=code,  # Python looks there first
            env={**os.environ, "PYTHONPATH": str(code.resolve())},
        )
        took_s = time.monotonic() - begun
        trials = read_rows(run / "trials.jsonl")
        outcome = json.loads((run / "outcome.json").read_text()) if not done.returncode else {}
        advised = json.loads((run / "advice.json").read_text()) if outcome else {}
    return {
        "set": data.name,
        "code": code.name,
        "limit": limit,
        "seed": seed,
        "exit": done.returncode,
        "took_s": round(took_s, 1),
        "over_s": round(took_s - limit_s, 1),
        "cpu_s": round(_children_s() - used_s, 1),
        "load": round(os.getloadavg()[0], 1),
        "within": abs(took_s - limit_s) <= max(0.05 * limit_s, 5),
        "ended": outcome.get("ended"),
        "trials": len(trials),
        "advised": _start(advised["recommendations"][0]) if advised else None,
        "training_runs": [_start(t) for t in trials if get_strategy(t["strategy"]).trains_network],
        "best": _start(outcome["best"]) if outcome else None,
        "accuracy": outcome["test_accuracy"]["mid"] if outcome else None,
        "said": done.stderr[-300:],
    }


def _start(trial: Mapping[str, Any]) -> list[Any]:
    """Return the strategy and the input size of a trial or a recommendation."""
    return [trial["strategy"], trial["hyperparameters"].get("input_px")]


def _children_s() -> float:
    """Return the processor seconds of all finished runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the runs that have no row yet, and print how many kept their limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--sets", nargs="+", required=True, help="names of datasets")
    parser.add_argument("--times", nargs="+", default=["1m", "3m", "8m"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache-dir", type=Path, help="default: a new cache for every run")
    parser.add_argument("--code", nargs="+", type=Path, default=[HERE.parent], help="checkouts")
    parser.add_argument("--input-px", type=int, help="default: chosen by the run")
    parser.add_argument("--out", type=Path, default=Path("budget.jsonl"))
    given = parser.parse_args(argv)
    rows = read_rows(given.out)
    known = {(r["set"], r["limit"], r["seed"], r["code"]) for r in rows}
    cases = product(given.seeds, given.times, given.sets, given.code)
    for seed, limit, name, code in cases:
        if (name, limit, seed, code.name) in known:
            continue
        row = measure(
            given.data / name,
            limit,
            seed,
            code=code,
            cache=given.cache_dir,
            input_px=given.input_px,
        )
        rows.append(row)
        append_row(given.out, row)
        print(json.dumps(row), flush=True)
    n = sum(bool(r["within"]) for r in rows)
    early = [r for r in rows if not r["within"] and r["over_s"] < 0 and r["ended"] in NOTHING_LEFT]
    print(f"{n} of {len(rows)} runs ended within max(5%, 5 s) of the limit")
    print(f"{len(early)} more ended early because nothing was left to try")


if __name__ == "__main__":
    main()
