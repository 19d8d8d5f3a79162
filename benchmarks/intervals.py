"""Check the intervals of predicted accuracies on datasets that the priors were not fitted to.

Coverage should be 90% at each number of images per class. The mean interval score (T. Gneiting,
A. Raftery, Strictly proper scoring rules, prediction, and estimation, 2007) is the width plus 20
times what lies outside, in points; lower is better. It rewards narrow intervals that hold.

Run:      python benchmarks/intervals.py
Cost:     half a minute on one core; reads rows only.
Expected: the tables of docs/benchmarks/intervals.md: coverage of 85 to 100%, a score of 33.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from leave_one_dataset_out import (
    DEFAULT_POLICY,
    AdvisedCase,
    LeaveOut,
    advise_all,
    advised_entry,
    kind_of,
)
from regret import bootstrap
from rows import EVIDENCE, RESULTS, read_inputs, read_rows

from advisor.decide.gain_model import Z, accuracy_of, angle_of
from strategies.core.metrics import LEVEL, Interval


def intervals(advised: list[AdvisedCase]) -> str:
    """Return coverage, median width and mean interval score of the 90% intervals.

    The intervals are those of the true accuracy. They are compared with the accuracy on a finite
    test split, so its noise is added to them first. The mean interval score (Gneiting and Raftery,
    2007) is the width plus 20 times what lies outside, in points; lower is better.
    """
    found: dict[tuple[str, int], list[tuple[bool, float, float]]] = defaultdict(list)
    datasets: list[str] = []
    for j in advised:
        for r in j.decisions[DEFAULT_POLICY].options:
            row = j.rows.get(advised_entry(r, j.rows))
            if row is None:
                continue
            low, high = with_test_noise(r.accuracy, row["n_test"])
            outside = max(low - row["accuracy"], row["accuracy"] - high, 0.0)
            score = 100 * (high - low + 2 / (1 - LEVEL) * outside)
            held = (outside == 0, 100 * (high - low), score)
            datasets.append(j.case.dataset)
            for strategy in (r.strategy, "all"):
                for size in (j.case.n_per_class, 0):
                    found[strategy, size].append(held)
    sizes = sorted({size for _, size in found} - {0})
    heads = [*(f"{n} images per class" for n in sizes), "all sizes"]
    lines = [f"| strategy | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for size in (*sizes, 0):
            if (name, size) not in found:
                cells.append("–")
                continue
            shares, widths, scores = (np.array(v) for v in zip(*found[name, size], strict=True))
            cells.append(
                f"{100 * shares.mean():.0f}%, {np.median(widths):.0f}, {scores.mean():.1f}"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    every = [score for _, _, score in found["all", 0]]
    low, mid, high = bootstrap(every, datasets, lambda v: float(v.mean()))
    lines += ["", f"Mean interval score of {len(every)}: {mid:.1f} [{low:.1f}, {high:.1f}]."]
    return "\n".join(lines) + "\n"


def with_test_noise(accuracy: Interval, n_test: int) -> tuple[float, float]:
    """Return the ends of an interval of accuracy, widened by the noise of a test split."""
    low, mid, high = (float(angle_of(x)) for x in (accuracy.low, accuracy.mid, accuracy.high))
    noise = Z * 0.5 / np.sqrt(n_test)
    ends = mid - np.hypot(mid - low, noise), mid + np.hypot(high - mid, noise)
    return float(accuracy_of(ends[0])), float(accuracy_of(ends[1]))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table for every input size of the profiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument(
        "--leave-out",
        choices=get_args(LeaveOut),
        default="dataset",
        help="what the priors do not know: the dataset, its backbone, or its collection",
    )
    args = parser.parse_args(argv)
    rows, inputs = read_rows(args.results), read_inputs(args.evidence)
    advised = advise_all(rows, inputs, args.leave_out)
    what = "coverage, median width in points, mean interval score"
    for backbone, px in sorted({kind_of(j.case) for j in advised}):
        print(f"{backbone}, profiles at {px} px: {what}\n")
        print(intervals([j for j in advised if kind_of(j.case) == (backbone, px)]))
    if args.leave_out == "backbone":
        print("Coverage over all cases:\n")
        for name in sorted({j.case.backbone for j in advised}):
            print(f"{name}\n\n{intervals([j for j in advised if j.case.backbone == name])}")


if __name__ == "__main__":
    main()
