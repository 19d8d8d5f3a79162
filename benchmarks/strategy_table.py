"""Compare the strategies: mean accuracy by input size, images per class, domain; what each adds.

Only rows of the default backbone with default hyperparameters count. A cell of the first table is
a mean over the datasets (and seeds) that have a row of every strategy in its line's input size,
so that the numbers of a line are of the same cases. Strategies with rows on fewer than half of the
cases stand in a second table, beside the others on the cases that they have.

The third table is by halves: on each case the test images are divided at random, the best
strategy is found on one half and judged on the other. "Best" is the share of halves on which a
strategy was best. "Lost without it" is how many points lower the strategy that is found is on the
other half if this one may not be chosen. Its interval is a 90% bootstrap interval over datasets.
Only cases with the results of every test image count. Seconds are medians of the rows that were
measured on a core of their own. With fewer than five datasets there is no such table.

Run:      python benchmarks/strategy_table.py
Cost:     a minute on one core; reads rows only.
Expected: the tables of docs/benchmarks/suite.md, "What the strategies add".
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from regret import bootstrap
from rows import EVIDENCE, RESULTS, Case, Row, case_of, hits_of, read_inputs, read_rows, seconds_of

from advisor.decide.recommend import quadrant_of
from strategies.models.catalogue import DEFAULT_BACKBONE
from strategies.registry import STRATEGIES

MIN_COVERAGE = 0.5
"""Share of the cases of an input size that a strategy of the first table must have rows of."""
MIN_DATASETS = 5
"""Fewer datasets say too little about what a strategy adds."""
HALVES = 100
"""Random halves of a case's test images."""

Fits = Mapping[str, Row]


class Cell(NamedTuple):
    """A group of cases: one line of the tables of accuracies."""

    input_px: int
    n_per_class: int
    domain: str


def default_fits(rows: Iterable[Row], known: Iterable[Case]) -> dict[Case, Fits]:
    """Return the default rows of every case that was measured, by strategy."""
    found: dict[Case, dict[str, Row]] = defaultdict(dict)
    measured = set(known)
    for row in rows:
        case = case_of(row)
        if case in measured and case.backbone == DEFAULT_BACKBONE and not row["grid"]:
            found[case][row["strategy"]] = row
    return dict(found)


def widespread(fits: Iterable[Fits]) -> tuple[str, ...]:
    """Return the strategies that most of the cases have, in the order of the registry."""
    cases = list(fits)
    share = {s: np.mean([s in found for found in cases]) for s in STRATEGIES}
    return tuple(s for s in STRATEGIES if share[s] >= MIN_COVERAGE)


def accuracy_table(
    fits: Mapping[Case, Fits], cell_of: Mapping[Case, Cell], strategies: Sequence[str]
) -> list[str]:
    """Return mean accuracies in per cent, over cases with rows of all these strategies."""
    complete = {case: f for case, f in fits.items() if f.keys() >= set(strategies)}
    lines = [
        f"| px | per class | domain | datasets | {' | '.join(f'`{s}`' for s in strategies)} |",
        "|---" * (4 + len(strategies)) + "|",
    ]
    for cell in sorted({cell_of[case] for case in complete}):
        mine = {case: f for case, f in complete.items() if cell_of[case] == cell}
        means = [dataset_mean({c: f[s]["accuracy"] for c, f in mine.items()}) for s in strategies]
        texts = [f"{100 * m:.1f}" for m in means]
        best = int(np.argmax(means))
        texts[best] = f"**{texts[best]}**"
        n = len({case.dataset for case in mine})
        lines.append(f"| {' | '.join(map(str, cell))} | {n} | {' | '.join(texts)} |")
    return lines


def dataset_mean(values: Mapping[Case, float]) -> float:
    """Return the mean over datasets of the mean over a dataset's seeds."""
    by_dataset: dict[str, list[float]] = defaultdict(list)
    for case, value in values.items():
        by_dataset[case.dataset].append(value)
    return float(np.mean([np.mean(own) for own in by_dataset.values()]))


def halves_table(fits: Mapping[Case, Fits], strategies: Sequence[str]) -> list[str]:
    """Return how often each strategy is best by halves, and what is lost without it."""
    complete = {
        case: f for case, f in fits.items() if all("hits" in f.get(s, {}) for s in strategies)
    }
    datasets = [case.dataset for case in complete]
    if len(set(datasets)) < MIN_DATASETS:
        return []
    found = [by_halves(f, strategies, seed) for seed, f in enumerate(complete.values())]
    lines = [
        "| strategy | best | lost without it, points | seconds |",
        "|---|---|---|---|",
    ]
    for i, strategy in enumerate(strategies):
        best = np.mean([won[i] for won, _ in found])
        lost = [100 * values[i] for _, values in found]
        low, mid, high = bootstrap(lost, datasets, lambda v: float(v.mean()))
        seconds = np.array([seconds_of(f[strategy]) for f in complete.values()])
        timed = seconds[~np.isnan(seconds)]
        took = f"{np.median(timed):.0f}" if len(timed) else "not recorded"
        lines.append(
            f"| `{strategy}` | {100 * best:.0f}% | {mid:.2f} [{low:.2f}, {high:.2f}] | {took} |"
        )
    return lines


def by_halves(fits: Fits, strategies: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of halves on which each strategy is best, and what is lost without it.

    Ties are shared: a strategy is drawn from the best ones.
    """
    hits = np.array([hits_of(fits[s]) for s in strategies], dtype=float)
    rng = np.random.default_rng(seed)
    best, lost = np.zeros(len(strategies)), np.zeros(len(strategies))
    for _ in range(HALVES):
        order = rng.permutation(hits.shape[1])
        first, second = (hits[:, rows].mean(axis=1) for rows in np.array_split(order, 2))
        preferred = first + 1e-9 * rng.random(len(strategies))
        chosen = int(preferred.argmax())
        best[chosen] += 1
        preferred[chosen] = -1
        lost[chosen] += second[chosen] - second[int(preferred.argmax())]
    return best / HALVES, lost / HALVES


def report(fits: Mapping[Case, Fits], cell_of: Mapping[Case, Cell]) -> str:
    """Return all tables as Markdown."""
    lines: list[str] = []
    for px in sorted({case.input_px for case in fits}):
        mine = {case: f for case, f in fits.items() if case.input_px == px}
        strategies = widespread(mine.values())
        rare = {s for f in mine.values() for s in f if s not in strategies}
        lines += [
            f"{DEFAULT_BACKBONE}, profiles at {px} px:",
            "",
            *accuracy_table(mine, cell_of, strategies),
            "",
        ]
        lines += [*halves_table(mine, strategies), ""]
        for strategy in sorted(rare):
            beside = tuple(s for s in STRATEGIES if s in (*strategies, strategy))
            lines += [f"With `{strategy}`, on the cases that have it:", ""]
            lines += [*accuracy_table(mine, cell_of, beside), ""]
            lines += [*halves_table(mine, beside), ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    args = parser.parse_args(argv)
    inputs = read_inputs(args.evidence)
    fits = default_fits(read_rows(args.results), inputs)
    cells = {
        case: Cell(case.input_px, case.n_per_class, quadrant_of(inputs[case].profile).domain)
        for case in fits
    }
    print(report(fits, cells))


if __name__ == "__main__":
    main()
