"""Measure the regret of following the advice, on datasets that the priors were not fitted to.

Regret is the test accuracy of the best entry of the grid minus that of the entry that a policy
chooses, in points. Accuracy is the mean over the seeds (draws of images) of a dataset and size, if
there are several, because the best of single fits is best partly by chance. This regret is still
too high: test splits are finite and training runs vary. The regret by halves is printed too: the
best entry is found on one half of the test images with some of the seeds, and compared on the
other half with the other seeds, averaged over many random halves. It is too low, because the best
entry of a half need not be the best one; it is below 0 where advice chooses better than a look at
half of the test images. The difference of the two is the plain regret of an oracle that knows half
of the test images: the first table shows it, and less than that is luck. Priors are fitted without
the dataset under test. Only grid entries with rows for (nearly) all cases count, so that every
policy is evaluated on the same cases. Intervals are 90% bootstrap intervals over datasets, because
the cases of one dataset are not independent.

Run:      python benchmarks/regret.py [--cases]
Cost:     minutes on one core; reads rows only.
Expected: the tables of docs/benchmarks/regret.md: about 0.9 points of regret by default.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from fit_priors import MIN_CASES
from gain_regression import PROBE
from leave_one_dataset_out import (
    COMPARED,
    DEFAULT,
    DEFAULT_POLICY,
    PREFERENCES,
    TIMES_S,
    AdvisedCase,
    Entry,
    LeaveOut,
    advise_all,
    advised_entry,
    kind_of,
    within,
)
from rows import EVIDENCE, RESULTS, Case, Row, case_of, read_inputs, read_rows, seconds_of
from shared_datasets import NEWER

from advisor.decide.recommend import quadrant_of

DRAWS = 2000
"""Number of bootstrap samples."""
ORACLE = "oracle: the best on one half of the test images, evaluated on the other"
COLLECTIONS = "the first fourteen", "the twelve newer ones"
ALL = "all"
FACTOR = 1.5
"""Predicted seconds within this factor of the measured ones count as correct."""


def policies(
    advised: list[AdvisedCase],
    logme: Mapping[Case, list[float]],
    regret: Callable[[AdvisedCase, Entry], float] = AdvisedCase.regret,
) -> dict[str, list[float]]:
    """Return the regret (or another value) of the entry that every policy chooses, by case."""
    table: dict[str, list[float]] = {}
    for policy in PREFERENCES:
        if all(policy in j.decisions for j in advised):
            table[policy] = [
                regret(j, advised_entry(j.decisions[policy].recommendations[0], j.rows))
                for j in advised
            ]
    for entry in sorted(advised[0].rows):
        table[title_of(entry)] = [regret(j, entry) for j in advised]
    by_rule = [(quadrant_of(j.inputs.profile).rule, DEFAULT, j.case.input_px) for j in advised]
    table["rule of four quadrants"] = [
        regret(j, e) for j, e in zip(advised, by_rule, strict=True) if e in j.rows
    ]
    if all(j.case in logme for j in advised):
        table["linear head at the depth of best LogME"] = [
            regret(j, (_by_logme(logme[j.case]), DEFAULT, j.case.input_px)) for j in advised
        ]
    table["random choice"] = [float(np.mean([regret(j, e) for e in j.rows])) for j in advised]
    return table


def is_fixed(entry: Entry) -> bool:
    """Return whether an entry has the same hyperparameters on all data.

    Default learning rate and blend of fine-tunes depend on the evidence.
    """
    name, given, _ = entry
    return name not in COMPARED or json.loads(given).keys() >= {"lr", "blend"}


def title_of(entry: Entry) -> str:
    """Return the name of the policy that always chooses an entry."""
    name, given, px = entry
    if not is_fixed(entry):
        given = "evidence-based default" + ("" if given == DEFAULT else f" with {given}")
    elif given == DEFAULT:
        given = "default"
    else:
        given = ", ".join(f"{k} {v}" for k, v in json.loads(given).items())
    return f"always {name}, {given}, {px} px"


def _by_logme(values: list[float]) -> str:
    return "linear_probe" if int(np.argmax(values)) == len(values) - 1 else "layer_svm"


def bootstrap(
    values: Sequence[Any], datasets: list[str], statistic: Callable[[np.ndarray], float]
) -> tuple[float, float, float]:
    """Return lower end, estimate and upper end of a statistic; whole datasets are resampled."""
    rng = np.random.default_rng(0)
    by_dataset: dict[str, list[Any]] = defaultdict(list)
    for name, value in zip(datasets, values, strict=True):
        by_dataset[name].append(value)
    groups = [np.array(v) for v in by_dataset.values()]
    draws = [
        statistic(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, [0.05, 0.95])
    return float(low), statistic(np.array(values)), float(high)


def _format_interval(interval: tuple[float, float, float], digits: int = 1) -> str:
    low, mid, high = (f"{v:.{digits}f}" for v in interval)
    return f"{mid} [{low}, {high}]"


def time_ratios(advised: list[AdvisedCase]) -> dict[str, list[float]]:
    """Return measured / predicted seconds of the fits of every recommended strategy."""
    found: dict[str, list[float]] = defaultdict(list)
    for j in advised:
        for r in j.decisions[DEFAULT_POLICY].recommendations:
            row = j.rows.get(advised_entry(r, j.rows))
            if row is not None and row["seconds"] is not None:
                found[r.strategy].append(seconds_of(row) / r.seconds.mid)
    return found


def report(advised: list[AdvisedCase], logme: Mapping[Case, list[float]]) -> str:
    """Return regret of all policies, and errors of all predictions, as Markdown tables."""
    datasets = [j.case.dataset for j in advised]
    sizes = sorted({j.case.n_per_class for j in advised})
    entries = [f"{name} {given} {px} px" for name, given, px in sorted(advised[0].rows)]
    lines = [
        f"{len(advised)} cases: {len(set(datasets))} datasets, {sizes} images per class, "
        f"seeds {sorted({j.case.seed for j in advised})}. Rows of each: {'; '.join(entries)}.",
        "",
        "| policy | mean regret in points | 90th percentile | mean regret by halves | "
        "seconds per fit |",
        "|---|---|---|---|---|",
    ]
    table = policies(advised, logme)
    halves = policies(advised, logme, AdvisedCase.regret_by_halves)
    took = policies(advised, logme, lambda j, entry: seconds_of(j.rows[entry]))
    luck = np.subtract(table[DEFAULT_POLICY], halves[DEFAULT_POLICY])
    table[ORACLE], halves[ORACLE] = luck.tolist(), [0.0] * len(advised)
    took[ORACLE] = [math.nan] * len(advised)
    for name, values in sorted(table.items(), key=lambda item: float(np.mean(item[1]))):
        if len(values) == len(datasets):
            plain = _format_interval(bootstrap(values, datasets, lambda v: float(v.mean())))
            top = float(np.quantile(values, 0.9))
            halved = _format_interval(bootstrap(halves[name], datasets, lambda v: float(v.mean())))
            spent = float(np.mean(took[name]))
            time_s = "not recorded" if np.isnan(spent) else f"{spent:.0f}"
            lines.append(f"| {name} | {plain} | {top:.1f} | {halved} | {time_s} |")
    found = time_ratios(advised)
    if not found:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "| predicted strategy | cases | seconds within a factor of 1.5 | "
        "median measured / predicted seconds |",
        "|---|---|---|---|",
    ]
    for name, values in [*found.items(), ("all", [r for v in found.values() for r in v])]:
        ratios = np.array(values)
        near = float(np.mean((ratios < FACTOR) & (ratios > 1 / FACTOR)))
        middle = float(np.median(ratios))
        lines.append(f"| {name} | {len(values)} | {100 * near:.0f}% | {middle:.2f} |")
    return "\n".join(lines) + "\n"


def against_best_fixed(advised: list[AdvisedCase], logme: Mapping[Case, list[float]]) -> str:
    """Return the regret of advice as a share of the regret of the best fixed grid entry.

    That entry is the one with the lowest mean regret over all cases, known only in hindsight.
    """
    datasets = [j.case.dataset for j in advised]
    table = policies(advised, logme)
    fixed = [title_of(e) for e in advised[0].rows if is_fixed(e)]
    best = min(fixed, key=lambda title: float(np.mean(table[title])))
    lines = [f"| regret as a share of: {best} | |", "|---|---|"]
    for policy in PREFERENCES:
        pairs = list(zip(table[policy], table[best], strict=True))
        lines.append(f"| {policy} | {_format_interval(bootstrap(pairs, datasets, _share), 2)} |")
    return "\n".join(lines) + "\n"


def _share(pairs: np.ndarray) -> float:
    mine, best = pairs.mean(axis=0)
    return float(mine / max(best, 1e-9))


def by_size(advised: list[AdvisedCase], logme: Mapping[Case, list[float]]) -> str:
    """Return the mean regret of every policy by images per class."""
    sizes = sorted({j.case.n_per_class for j in advised})
    counts = [sum(j.case.n_per_class == n for j in advised) for n in sizes]
    heads = [
        f"{n} images per class ({count} cases)" for n, count in zip(sizes, counts, strict=True)
    ]
    lines = [f"| policy | {' | '.join(heads)} |", "|---" * (len(sizes) + 1) + "|"]
    for name, values in policies(advised, logme).items():
        if len(values) == len(advised):
            at = zip(values, advised, strict=True)
            found = [(v, j.case.n_per_class) for v, j in at]
            means = [float(np.mean([v for v, n in found if n == size])) for size in sizes]
            lines.append(f"| {name} | {' | '.join(f'{m:.1f}' for m in means)} |")
    return "\n".join(lines) + "\n"


def by_backbone(advised: list[AdvisedCase]) -> str:
    """Return the regret of advice over all cases of each backbone, and over those of all."""
    lines = ["| backbone | cases | advice: regret in points | by halves |", "|---|---|---|---|"]
    names = sorted({j.case.backbone for j in advised})
    for name in (*names, ALL):
        some = [j for j in advised if name in (j.case.backbone, ALL)]
        lines.append(f"| {name} | {len(some)} | {_advice_regret(some)} |")
    return "\n".join(lines) + "\n"


def _advice_regret(advised: list[AdvisedCase]) -> str:
    """Return two cells of a table: mean regret of the default advice, and that by halves."""
    taken = [
        advised_entry(j.decisions[DEFAULT_POLICY].recommendations[0], j.rows) for j in advised
    ]
    own = [j.regret(e) for j, e in zip(advised, taken, strict=True)]
    halves = [j.regret_by_halves(e) for j, e in zip(advised, taken, strict=True)]
    return f"{_mean(own, advised)} | {_mean(halves, advised)}"


def _mean(values: list[float], advised: list[AdvisedCase]) -> str:
    datasets = [j.case.dataset for j in advised]
    return _format_interval(bootstrap(values, datasets, lambda v: float(v.mean())))


def by_collection(advised: list[AdvisedCase]) -> str:
    """Return the regret of advice on the first datasets of the suite and on the newer ones."""
    lines = [
        "| datasets | cases | advice: regret in points | by halves | best fixed pair | "
        "its regret |",
        "|---|---|---|---|---|---|",
    ]
    for title in COLLECTIONS:
        some = [j for j in advised if (j.case.dataset in NEWER) == (title == COLLECTIONS[1])]
        if not some:
            continue
        fixed = {e: [j.regret(e) for j in some] for e in sorted(some[0].rows)}
        best = min(fixed, key=lambda e: float(np.mean(fixed[e])))
        pair = title_of(best).removeprefix("always ")
        cells = f"{_advice_regret(some)} | {pair} | {_mean(fixed[best], some)}"
        lines.append(f"| {title} | {len(some)} | {cells} |")
    return "\n".join(lines) + "\n"


def advice_cost(advised: list[AdvisedCase], seconds: Mapping[Case, float]) -> str:
    """Return the seconds of advice as a share of fitting every strategy once."""
    fits = [
        sum(seconds_of(row) for (_, given, _), row in j.rows.items() if given == DEFAULT)
        for j in advised
    ]
    costs = [seconds[j.case] for j in advised]
    share = 100 * sum(costs) / sum(fits)
    worst = 100 * max(c / f for c, f in zip(costs, fits, strict=True))
    return (
        "| advice: share of fitting every strategy once | highest share |\n|---|---|\n"
        f"| {share:.1f}% | {worst:.0f}% |\n"
    )


def outcome(case: AdvisedCase, entry: Entry, time_s: float) -> float:
    """Return the test accuracy of an entry within a time.

    If its fit took longer, it is that of the linear probe on the largest inputs that ended in
    time; 0 if none did.
    """
    if seconds_of(case.rows[entry]) <= time_s:
        return case.expected[entry]
    probes = [
        (px, case.expected[e])
        for e in case.rows
        for name, given, px in [e]
        if name == PROBE and given == DEFAULT and seconds_of(case.rows[e]) <= time_s
    ]
    return max(probes)[1] if probes else 0.0


def by_budget(advised: list[AdvisedCase]) -> str:
    """Return the regret of advice and of the best fixed pair of strategy and size, by time.

    Regret is that against the best entry whose fit ended in time. The best fixed pair is known
    only in hindsight.
    """
    datasets = [j.case.dataset for j in advised]
    lines = [
        "| time for the fit | advice: regret in points | best fixed pair | its regret | share |",
        "|---|---|---|---|---|",
    ]
    pairs = [e for e in sorted(advised[0].rows) if all(e in j.rows for j in advised)]
    for time_s in (*TIMES_S, math.inf):
        policy = DEFAULT_POLICY if math.isinf(time_s) else within(time_s)
        taken = [advised_entry(j.decisions[policy].recommendations[0], j.rows) for j in advised]
        own = _regrets(advised, taken, time_s)
        fixed = {pair: _regrets(advised, [pair] * len(advised), time_s) for pair in pairs}
        best = min(fixed, key=lambda pair: float(np.mean(fixed[pair])))
        ends = (
            _format_interval(bootstrap(v, datasets, lambda v: float(v.mean())))
            for v in (own, fixed[best])
        )
        share = _share(np.column_stack([own, fixed[best]]))
        limit = "no limit" if math.isinf(time_s) else f"{time_s:.0f} s"
        mine, theirs = ends
        lines.append(f"| {limit} | {mine} | {best[0]}, {best[2]} px | {theirs} | {share:.2f} |")
    return "\n".join(lines) + "\n"


def _regrets(
    advised: Sequence[AdvisedCase], entries: Sequence[Entry], time_s: float
) -> list[float]:
    """Return the regret of an entry for each case within a time, in points."""
    return [
        100 * (max(outcome(j, e, time_s) for e in j.rows) - outcome(j, entry, time_s))
        for j, entry in zip(advised, entries, strict=True)
    ]


def timed(advised: list[AdvisedCase]) -> list[AdvisedCase]:
    """Return the cases whose fits all have their seconds.

    An entry that was timed in no case is left out first (``run_suite.py --untimed``), and the
    advice is the best one of the others.
    """
    known = {e for j in advised for e, r in j.rows.items() if not np.isnan(seconds_of(r))}
    kept = [_without_others(j, known) for j in advised]
    return [
        j for j in kept if j.rows and not any(np.isnan(seconds_of(r)) for r in j.rows.values())
    ]


def _without_others(case: AdvisedCase, entries: Container[Entry]) -> AdvisedCase:
    """Return a case with the rows and the recommendations of some entries alone."""
    rows = {e: r for e, r in case.rows.items() if e in entries}
    decisions = {
        policy: replace(
            decision,
            recommendations=tuple(
                r for r in decision.recommendations if advised_entry(r, rows) in rows
            ),
        )
        for policy, decision in case.decisions.items()
    }
    return replace(case, rows=rows, decisions=decisions)


def cases_table(advised: list[AdvisedCase]) -> str:
    """Return a table of all cases: best entry, advised entry and regret."""
    lines = ["| dataset | images per class | seed | best | advised | regret in points |"]
    lines.append("|---|---|---|---|---|---|")
    for j in advised:
        best = max(j.rows, key=lambda e: j.expected[e])
        taken = advised_entry(j.decisions[DEFAULT_POLICY].recommendations[0], j.rows)
        both = [f"{' '.join(map(str, e))}: {100 * j.expected[e]:.1f}" for e in (best, taken)]
        draw = (j.case.dataset, str(j.case.n_per_class), str(j.case.seed))
        cells = (*draw, *both, f"{j.regret(taken):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--seeds", type=int, nargs="*", help="seeds of cases; default: all")
    parser.add_argument("--budgets", action="store_true", help="only regret by time of the fit")
    parser.add_argument(
        "--leave-out",
        choices=get_args(LeaveOut),
        default="dataset",
        help="what the priors do not know: the dataset, its backbone, or its collection",
    )
    parser.add_argument("--cases", action="store_true", help="also list every case")
    args = parser.parse_args(argv)
    inputs = {
        case: known
        for case, known in read_inputs(args.evidence).items()
        if args.seeds is None or case.seed in args.seeds
    }
    rows = read_rows(args.results)
    advised = advise_all(rows, inputs, args.leave_out)
    n_datasets = len({j.case.dataset for j in advised})
    if n_datasets <= MIN_CASES:
        raise SystemExit(
            f"There are complete cases of {n_datasets} datasets; leaving one out needs more than "
            f"{MIN_CASES}. Run benchmarks/run_suite.py on more datasets."
        )
    for backbone, px in sorted({kind_of(j.case) for j in advised}):
        print(f"{backbone}, profiles at {px} px\n")
        alike = [j for j in advised if kind_of(j.case) == (backbone, px)]
        if args.budgets:
            with_seconds = timed(alike)
            print(by_budget(with_seconds) if with_seconds else "No seconds were recorded.\n")
        else:
            _print_tables(alike, read_rows(args.evidence), with_cases=args.cases)
    if args.leave_out == "backbone":
        print(by_backbone(advised))


def _print_tables(advised: list[AdvisedCase], evidence: list[Row], *, with_cases: bool) -> None:
    logme = {case_of(r): r["logme_by_depth"] for r in evidence}
    print(report(advised, logme))
    print(against_best_fixed(advised, logme))
    print(by_size(advised, logme))
    print(by_collection(advised))
    with_seconds = timed(advised)
    if with_seconds:
        print(advice_cost(with_seconds, {case_of(r): r["advice_s"] for r in evidence}))
    if with_cases:
        print(cases_table(advised))


if __name__ == "__main__":
    main()
