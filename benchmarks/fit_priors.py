"""Rebuild advisor/priors.json from benchmarks/results.jsonl, byte for byte.

    python benchmarks/fit_priors.py

For every trained strategy and every (set, n, seed), the log-odds of its test accuracy minus those
of the linear probe, at the learning rate of the grid that is nearest to the one advised for that
similarity; then a straight line over domain similarity, and the spread of a new case around it.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS, PRIORS = HERE / "results.jsonl", HERE.parent / "advisor" / "priors.json"

# What is set by hand: the learning rates at both ends.
LR_SIMILAR, LR_DIFFERENT = 1e-4, 1e-3
SPREAD_PRIOR, PRIOR_ROWS = 1.0, 1.0
"""The spread starts as if this many cases had shown it; the slope as if they had shown none."""

Row = dict[str, Any]


def fit(rows: list[Row]) -> dict[str, Any]:
    """Return the contents of priors.json."""
    lines = {
        name: _line(_gains(rows, name))
        for name in ("partial_fine_tune", "full_fine_tune", "from_scratch")
    }
    sets = sorted({r["set"] for r in rows})
    return {
        "provenance": f"benchmarks/fit_priors.py on {len(rows)} rows of benchmarks/results.jsonl: "
        f"{len(sets)} sets ({', '.join(sets)}), "
        f"{sorted({r['n_per_class'] for r in rows})} a class, "
        f"seeds {sorted({r['seed'] for r in rows})}, {rows[0]['input_px']} px",
        "log_odds_gain": lines,
        "lr": {"at_similar": LR_SIMILAR, "at_different": LR_DIFFERENT},
    }


def _gains(rows: list[Row], strategy: str) -> list[tuple[float, float]]:
    """Return (similarity, log-odds gained over the linear probe) case by case."""
    cases: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        cases[row["set"], row["n_per_class"], row["seed"]].append(row)
    found = []
    for case in cases.values():
        probe = next((r for r in case if r["strategy"] == "linear_probe"), None)
        tried = [r for r in case if r["strategy"] == strategy]
        if probe is None or not tried:
            continue
        similarity = probe["similarity"]
        row = min(tried, key=lambda r: abs(math.log(r["hyperparameters"]["lr"]) - _lr(similarity)))
        found.append((similarity, _log_odds(row) - _log_odds(probe)))
    return found


def _log_odds(row: Row) -> float:
    """Return the log-odds of a test accuracy, half a picture away from 0 and 1."""
    accuracy = np.clip(row["accuracy"], 0.5 / row["n_test"], 1 - 0.5 / row["n_test"])
    return float(np.log(accuracy / (1 - accuracy)))


def _lr(similarity: float) -> float:
    """Return the logarithm of the advised learning rate."""
    near, far = math.log(LR_SIMILAR), math.log(LR_DIFFERENT)
    return far + similarity * (near - far)


def _line(gains: list[tuple[float, float]]) -> dict[str, float]:
    """Fit a line over similarity, its slope shrunk towards none, never rising with similarity."""
    x, y = np.array(gains).T
    centre = x.mean()
    squares = ((x - centre) ** 2).sum() + 0.1 * PRIOR_ROWS
    slope = min(float(((x - centre) * (y - y.mean())).sum() / squares), 0.0)
    residual = y - y.mean() - slope * (x - centre)
    freedom = max(len(x) - 2, 0) + PRIOR_ROWS
    variance = (residual @ residual + PRIOR_ROWS * SPREAD_PRIOR**2) / freedom
    return {
        "at_similar": round(float(y.mean() + slope * (1 - centre)), 3),
        "at_different": round(float(y.mean() - slope * centre), 3),
        "sd": round(float(np.sqrt(variance * (1 + 1 / len(x)))), 3),
        "cases": len(x),
    }


def text_of(rows: list[Row]) -> str:
    """Return priors.json as text."""
    return json.dumps(fit(rows), indent=2) + "\n"


def main() -> None:
    """Write the priors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PRIORS)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.results.read_text().splitlines()]
    args.out.write_text(text_of(rows))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
