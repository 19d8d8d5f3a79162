"""What following the advice costs: regret on datasets that the priors were not fitted to.

    python benchmarks/regret.py

Regret is the test accuracy of the best entry of the grid minus that of the one that a policy
takes, in points; accuracy is the mean over the seeds (draws of images) of a set and size, where
there are several, because the best of single fits is the luckiest. That is too high all the same:
test splits are finite and training runs differ by chance. So beside it stands the regret by halves:
the best entry is found on one half of the test images with some of the seeds, and compared on
the other half with the others, over many halves. That is too low, as the best of a half need not
be the best, and below 0 where advice does better than such a look at the test images. Priors are
fitted again without the set under test. Only rows of grid entries that are there for (nearly) all
cases count, so that every policy is judged on the same cases. Intervals are 90% bootstrap
intervals over datasets, because the cases of one set are not independent.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fit_priors import FEWEST
from judged import COMPARED, DEFAULT, Entry, Judged, advised_entry, judge
from rows import EVIDENCE, RESULTS, Case, case_of, read_profiles, read_rows

from advisor.decide.recommend import place
from advisor.types.advice import Decision

DRAWS = 2000
"""Bootstrap draws."""
FACTOR = 1.5


def policies(
    judged: list[Judged],
    logme: Mapping[Case, list[float]],
    regret: Callable[[Judged, Entry], float] = Judged.regret,
) -> dict[str, list[float]]:
    """Return the regret, or what else an entry has, of what every policy takes, case by case."""
    table: dict[str, list[float]] = {}
    for policy in judged[0].decisions:
        if all(policy in j.decisions for j in judged):
            table[policy] = [
                regret(j, advised_entry(j.decisions[policy].recommendations[0], j.rows))
                for j in judged
            ]
    for entry in sorted(judged[0].rows):
        table[title_of(entry)] = [regret(j, entry) for j in judged]
    by_rule = [(place(j.profile).rule, DEFAULT) for j in judged]
    table["rule of four quadrants"] = [
        regret(j, e) for j, e in zip(judged, by_rule, strict=True) if e in j.rows
    ]
    if all(j.case in logme for j in judged):
        table["depth by LogME, probe there"] = [
            regret(j, (_by_logme(logme[j.case]), DEFAULT)) for j in judged
        ]
    table["random choice"] = [float(np.mean([regret(j, e) for e in j.rows])) for j in judged]
    return table


def is_fixed(entry: Entry) -> bool:
    """Whether an entry is the same on all data; what fine-tunes do by default follows evidence."""
    name, given = entry
    return name not in COMPARED or json.loads(given).keys() >= {"lr", "blend"}


def title_of(entry: Entry) -> str:
    """Name the policy of taking an entry always."""
    name, given = entry
    if not is_fixed(entry):
        given = f"default {given}, by evidence" if given != DEFAULT else "default, by evidence"
    elif given == DEFAULT:
        given = "default"
    else:
        given = ", ".join(f"{k} {v}" for k, v in json.loads(given).items())
    return f"always {name}, {given}"


def _by_logme(values: list[float]) -> str:
    return "linear_probe" if int(np.argmax(values)) == len(values) - 1 else "layer_svm"


def bootstrap(
    values: Sequence[Any], sets: list[str], statistic: Callable[[np.ndarray], float]
) -> tuple[float, float, float]:
    """Return low, middle and high of a statistic; whole datasets are drawn."""
    rng = np.random.default_rng(0)
    by_set: dict[str, list[Any]] = defaultdict(list)
    for name, value in zip(sets, values, strict=True):
        by_set[name].append(value)
    groups = [np.array(v) for v in by_set.values()]
    draws = [
        statistic(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, [0.05, 0.95])
    return float(low), statistic(np.array(values)), float(high)


def _spoken(interval: tuple[float, float, float], digits: int = 1) -> str:
    low, mid, high = (f"{v:.{digits}f}" for v in interval)
    return f"{mid} [{low}, {high}]"


def predictions(judged: list[Judged]) -> dict[str, list[tuple[bool, float]]]:
    """Return, by strategy, whether the interval held the test accuracy, and seconds' ratio."""
    found: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for j in judged:
        decision = j.decisions.get(
            "advisor with pilot, balanced", j.decisions["advisor, balanced"]
        )
        for r in decision.recommendations:
            row = j.rows.get(advised_entry(r, j.rows))
            if row is not None:
                inside = r.accuracy.low <= row["accuracy"] <= r.accuracy.high
                found[r.strategy].append((inside, row["seconds"] / r.seconds.mid))
    return found


def _decision(judged: Judged) -> Decision:
    """Return the advice by default, with the pilot where there is one."""
    bare = judged.decisions["advisor, balanced"]
    return judged.decisions.get("advisor with pilot, balanced", bare)


def report(judged: list[Judged], logme: Mapping[Case, list[float]]) -> str:
    """Return the tables as Markdown."""
    sets = [j.case[0] for j in judged]
    sizes = sorted({j.case[1] for j in judged})
    entries = [f"{name} {given}" for name, given in sorted(judged[0].rows)]
    lines = [
        f"{len(judged)} cases: {len(set(sets))} sets, {sizes} images per class, "
        f"seeds {sorted({j.case[2] for j in judged})}. Rows of each: {'; '.join(entries)}.",
        "",
        "| policy | mean regret, points | 90th percentile | mean by halves | seconds of a fit |",
        "|---|---|---|---|---|",
    ]
    table = policies(judged, logme)
    halves = policies(judged, logme, Judged.regret_by_halves)
    took = policies(judged, logme, lambda j, entry: float(j.rows[entry]["seconds"]))
    for name, values in sorted(table.items(), key=lambda item: float(np.mean(item[1]))):
        if len(values) == len(sets):
            plain = _spoken(bootstrap(values, sets, lambda v: float(v.mean())))
            top = float(np.quantile(values, 0.9))
            fair = _spoken(bootstrap(halves[name], sets, lambda v: float(v.mean())))
            spent = float(np.mean(took[name]))
            lines.append(f"| {name} | {plain} | {top:.1f} | {fair} | {spent:.0f} |")
    lines += ["", "| predicted | cases | 90% interval held | seconds within 1.5 | median ratio |"]
    lines.append("|---|---|---|---|---|")
    found = predictions(judged)
    for name, pairs in [*found.items(), ("all", [p for v in found.values() for p in v])]:
        held = float(np.mean([inside for inside, _ in pairs]))
        ratios = np.array([ratio for _, ratio in pairs])
        near = float(np.mean((ratios < FACTOR) & (ratios > 1 / FACTOR)))
        lines.append(
            f"| {name} | {len(pairs)} | {100 * held:.0f}% | {100 * near:.0f}% | "
            f"{float(np.median(ratios)):.2f} |"
        )
    return "\n".join(lines) + "\n"


def against_best_fixed(judged: list[Judged], logme: Mapping[Case, list[float]]) -> str:
    """Return what advice loses as a share of what the best fixed pair of the grid loses.

    That pair is the one with the lowest mean regret over all cases, known in hindsight.
    """
    sets = [j.case[0] for j in judged]
    table = policies(judged, logme)
    fixed = [title_of(e) for e in judged[0].rows if is_fixed(e)]
    best = min(fixed, key=lambda title: float(np.mean(table[title])))
    lines = [f"| regret as a share of: {best} | |", "|---|---|"]
    for policy in judged[0].decisions:
        pairs = list(zip(table[policy], table[best], strict=True))
        lines.append(f"| {policy} | {_spoken(bootstrap(pairs, sets, _share), 2)} |")
    return "\n".join(lines) + "\n"


def _share(pairs: np.ndarray) -> float:
    mine, best = pairs.mean(axis=0)
    return float(mine / max(best, 1e-9))


def by_size(judged: list[Judged], logme: Mapping[Case, list[float]]) -> str:
    """Return the mean regret of every policy by images per class."""
    sizes = sorted({j.case[1] for j in judged})
    counts = [sum(j.case[1] == n for j in judged) for n in sizes]
    heads = [f"{n} per class ({count} cases)" for n, count in zip(sizes, counts, strict=True)]
    lines = [f"| policy | {' | '.join(heads)} |", "|---" * (len(sizes) + 1) + "|"]
    for name, values in policies(judged, logme).items():
        if len(values) == len(judged):
            at = zip(values, judged, strict=True)
            found = [(v, j.case[1]) for v, j in at]
            means = [float(np.mean([v for v, n in found if n == size])) for size in sizes]
            lines.append(f"| {name} | {' | '.join(f'{m:.1f}' for m in means)} |")
    return "\n".join(lines) + "\n"


def advice_cost(judged: list[Judged], seconds: Mapping[Case, float]) -> str:
    """Return what advice cost, in shares of fitting every strategy once, over all cases."""
    fits = [
        sum(row["seconds"] for (_, given), row in j.rows.items() if given == DEFAULT)
        for j in judged
    ]
    bare = [seconds[j.case] for j in judged]
    lines = ["| advice | share of fitting all once | dearest case |", "|---|---|---|"]
    pilots = [0.0 if (p := j.profile.pilot) is None else p.seconds for j in judged]
    known = {
        "without pilot": bare,
        "with pilot": [b + p for b, p in zip(bare, pilots, strict=True)],
    }
    for name, costs in known.items():
        worst = max(c / f for c, f in zip(costs, fits, strict=True))
        lines.append(f"| {name} | {100 * sum(costs) / sum(fits):.1f}% | {100 * worst:.0f}% |")
    return "\n".join(lines) + "\n"


def cases_table(judged: list[Judged]) -> str:
    """Return every case: what was best, what was advised, and what that cost."""
    lines = ["| set | a class | seed | best | advised | regret |", "|---|---|---|---|---|---|"]
    for j in judged:
        best = max(j.rows, key=lambda e: j.expected[e])
        taken = advised_entry(_decision(j).recommendations[0], j.rows)
        said = [f"{' '.join(e)}: {100 * j.expected[e]:.1f}" for e in (best, taken)]
        name, n, seed, _ = j.case
        cells = (name, str(n), str(seed), *said, f"{j.regret(taken):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--seeds", type=int, nargs="*", help="of the cases; default: all")
    parser.add_argument("--cases", action="store_true", help="list every case too")
    args = parser.parse_args(argv)
    profiles = {
        case: profile
        for case, profile in read_profiles(args.evidence).items()
        if args.seeds is None or case[2] in args.seeds
    }
    logme = {case_of(r): r["logme_by_depth"] for r in read_rows(args.evidence)}
    judged = judge(read_rows(args.results), profiles)
    if len({j.case[0] for j in judged}) <= FEWEST:
        raise SystemExit("There are too few complete cases to leave a dataset out.")
    print(report(judged, logme))
    print(against_best_fixed(judged, logme))
    print(by_size(judged, logme))
    print(advice_cost(judged, {case_of(r): r["advice_s"] for r in read_rows(args.evidence)}))
    if args.cases:
        print(cases_table(judged))


if __name__ == "__main__":
    main()
