"""What following the advice costs: regret on data sets that the priors were not fitted to.

    python benchmarks/regret.py

Regret is the test accuracy of the best entry of the grid minus that of the one that a policy
takes, in points; accuracy is the mean over the seeds (draws of pictures) of a set and size, where
there are several, because the best of single fits is the luckiest. What is best on a finite
test split is lucky too, so beside it stands the regret by halves: the best entry is found on one
half of the test pictures and compared on the other, over many halves. It is a little too low where
the plain one is too high, as the best of a half need not be the best. Priors are fitted anew
without the set under test. Only rows of grid entries that are there for (nearly) all cases count,
so that every policy is judged on the same cases. Intervals are 90% bootstrap intervals over data
sets, because the cases of one set are not independent.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fit_priors import FEWEST, fit
from numpy.typing import NDArray
from rows import EVIDENCE, RESULTS, Case, Row, case_of, hits_of, read_profiles, read_rows

from advisor.priors import Priors, priors_of
from advisor.recommend import Prefer, place, recommend
from advisor.types import Decision, Profile, Recommendation

DRAWS, WIDELY = 2000, 0.8
"""Bootstrap draws; share of the cases that a grid entry must cover to count."""
HALVES = 500
"""Random halves of the test pictures."""
FACTOR = 1.5
DEFAULT = "{}"
COMPARED = ("partial_fine_tune", "full_fine_tune")

Entry = tuple[str, str]
"""A strategy and what was given to it, as JSON."""
Cases = Mapping[Case, Mapping[Entry, Row]]


@dataclass(frozen=True)
class Judged:
    """A case of the set under test: its rows, and what priors without this set lead to.

    Attributes
    ----------
    expected
        Test accuracy of every entry, mean over the seeds of this set and size.
    by_halves
        What an entry loses, in points, against the one that was best on other pictures.
    """

    case: Case
    rows: Mapping[Entry, Row]
    expected: Mapping[Entry, float]
    by_halves: Mapping[Entry, float]
    profile: Profile
    decisions: Mapping[str, Decision]

    def regret(self, entry: Entry) -> float:
        """Return the points lost against the best entry."""
        return 100 * (max(self.expected.values()) - self.expected[entry])

    def regret_by_halves(self, entry: Entry) -> float:
        """Return the same without the luck of the best, where single hits are known."""
        return self.by_halves.get(entry, self.regret(entry))


def entry_of(row: Row) -> Entry:
    """Return the grid entry that a row belongs to."""
    return row["strategy"], json.dumps(row["grid"], sort_keys=True)


def complete_cases(rows: list[Row], known: Mapping[Case, Profile]) -> Cases:
    """Keep the grid entries that nearly all cases have, and the cases that have them all.

    A case counts once something was trained on it.
    """
    found_rows: dict[Case, dict[Entry, Row]] = defaultdict(dict)
    for row in (r for r in rows if case_of(r) in known):
        found_rows[case_of(row)][entry_of(row)] = row
    cases = {
        case: found
        for case, found in found_rows.items()
        if any(name in COMPARED for name, _ in found)
    }
    entries = {e for found in cases.values() for e in found}
    wide = {e for e in entries if sum(e in c for c in cases.values()) >= WIDELY * len(cases)}
    return {
        case: {e: r for e, r in found.items() if e in wide}
        for case, found in cases.items()
        if wide <= found.keys()
    }


def advised_entry(best: Recommendation, rows: Mapping[Entry, Row]) -> Entry:
    """Return the entry that was advised: the one that names most of its hyperparameters."""
    fitting = []
    for name, given in rows:
        settings = json.loads(given)
        if name == best.strategy and settings.items() <= dict(best.hyperparameters).items():
            fitting.append((len(settings), (name, given)))
    if fitting:
        return max(fitting)[1]
    return best.strategy, DEFAULT


def judge(
    rows: list[Row], profiles: Mapping[Case, Profile], beside: Sequence[Row] = ()
) -> list[Judged]:
    """Advise on every case with priors that never saw its data set.

    Parameters
    ----------
    beside
        Rows that advice is compared with too, but that priors are not fitted to.
    """
    cases = complete_cases([*rows, *beside], profiles)
    kept = [row for row in rows if entry_of(row) in cases.get(case_of(row), {})]
    judged = []
    for name in sorted({case[0] for case in cases}):
        priors = priors_of(fit([r for r in kept if r["set"] != name], profiles))
        for case, found in cases.items():
            if case[0] == name:
                decisions = _decide(profiles[case], priors)
                expected, halves = _expected(case, cases), _by_halves(case, cases)
                judged.append(Judged(case, found, expected, halves, profiles[case], decisions))
    return judged


def _seeds_of(case: Case, cases: Cases) -> list[Mapping[Entry, Row]]:
    name, n, _, px = case
    return [rows for (s, m, _, p), rows in cases.items() if (s, m, p) == (name, n, px)]


def _expected(case: Case, cases: Cases) -> dict[Entry, float]:
    """Return the mean accuracy of every entry over the seeds of a case's set and size."""
    seeds = _seeds_of(case, cases)
    return {e: float(np.mean([rows[e]["accuracy"] for rows in seeds])) for e in cases[case]}


def _by_halves(case: Case, cases: Cases) -> dict[Entry, float]:
    """Return the points that every entry loses on one half to what was best on the other.

    Entries whose single hits are not known are left out; all are if the best of all is one of
    them, so that nothing looks better than it is.
    """
    seeds, expected = _seeds_of(case, cases), _expected(case, cases)
    known = [e for e in expected if all("hits" in rows[e] for rows in seeds)]
    if not known or max(expected, key=lambda e: expected[e]) not in known:
        return {}
    right = np.array([np.mean([hits_of(rows[e]) for rows in seeds], axis=0) for e in known])
    lost = 100 * _lost_by_halves(right, np.random.default_rng(0))
    return dict(zip(known, lost.tolist(), strict=True))


def _lost_by_halves(right: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return what each of some entries loses to the best, (entries,), from hits (entries, n)."""
    n = right.shape[1]
    first = rng.permuted(np.tile(np.arange(n) < n // 2, (HALVES, 1)), axis=1).T
    there, here = right @ first / (n // 2), right @ ~first / (n - n // 2)
    best = here[there.argmax(axis=0), np.arange(HALVES)]
    lost: NDArray[np.float64] = (best - here).mean(axis=1)
    return lost


def _decide(profile: Profile, priors: Priors) -> dict[str, Decision]:
    bare = replace(profile, pilot=None)
    preferences: tuple[Prefer, ...] = ("balanced", "accuracy", "cheap")
    decisions = {f"advisor, {p}": recommend(bare, priors, prefer=p) for p in preferences}
    for p in preferences:  # where there were too few pictures for a pilot, both are the same
        decisions[f"advisor with pilot, {p}"] = recommend(profile, priors, prefer=p)
    return decisions


def policies(
    judged: list[Judged],
    logme: Mapping[Case, list[float]],
    regret: Callable[[Judged, Entry], float] = Judged.regret,
) -> dict[str, list[float]]:
    """Return the regret of every policy, case by case."""
    entries = sorted(judged[0].rows)
    names = sorted({name for name, _ in entries})
    table: dict[str, list[float]] = {}
    for policy in judged[0].decisions:
        if all(policy in j.decisions for j in judged):
            table[policy] = [
                regret(j, advised_entry(j.decisions[policy].recommendations[0], j.rows))
                for j in judged
            ]
    for name in names:
        mine = [e for e in entries if e[0] == name]
        if (name, DEFAULT) in mine:
            table[f"always {name}, default"] = [regret(j, (name, DEFAULT)) for j in judged]
        best = min(mine, key=lambda e: float(np.mean([regret(j, e) for j in judged])))
        if len(mine) > 1:
            title = f"always {name}, best in hindsight ({best[1]})"
            table[title] = [regret(j, best) for j in judged]
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


def _by_logme(values: list[float]) -> str:
    return "linear_probe" if int(np.argmax(values)) == len(values) - 1 else "layer_svm"


def bootstrap(
    values: list[float], sets: list[str], statistic: Callable[[np.ndarray], float]
) -> tuple[float, float, float]:
    """Return low, middle and high of a statistic; whole data sets are drawn."""
    rng = np.random.default_rng(0)
    by_set: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(sets, values, strict=True):
        by_set[name].append(value)
    groups = [np.array(v) for v in by_set.values()]
    draws = [
        statistic(np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, [0.05, 0.95])
    return float(low), statistic(np.array(values)), float(high)


def _spoken(interval: tuple[float, float, float]) -> str:
    low, mid, high = interval
    return f"{mid:.1f} [{low:.1f}, {high:.1f}]"


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
        f"{len(judged)} cases: {len(set(sets))} sets, {sizes} pictures a class, "
        f"seeds {sorted({j.case[2] for j in judged})}. Rows of each: {'; '.join(entries)}.",
        "",
        "| policy | mean regret, points | 90th percentile | mean by halves |",
        "|---|---|---|---|",
    ]
    table = policies(judged, logme)
    halves = policies(judged, logme, Judged.regret_by_halves)
    for name, values in sorted(table.items(), key=lambda item: float(np.mean(item[1]))):
        if len(values) == len(sets):
            plain = _spoken(bootstrap(values, sets, lambda v: float(v.mean())))
            top = float(np.quantile(values, 0.9))
            fair = _spoken(bootstrap(halves[name], sets, lambda v: float(v.mean())))
            lines.append(f"| {name} | {plain} | {top:.1f} | {fair} |")
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


def by_size(judged: list[Judged], logme: Mapping[Case, list[float]]) -> str:
    """Return the mean regret of every policy by pictures a class."""
    sizes = sorted({j.case[1] for j in judged})
    counts = [sum(j.case[1] == n for j in judged) for n in sizes]
    heads = [f"{n} a class ({count} cases)" for n, count in zip(sizes, counts, strict=True)]
    lines = [f"| policy | {' | '.join(heads)} |", "|---" * (len(sizes) + 1) + "|"]
    for name, values in policies(judged, logme).items():
        if len(values) == len(judged):
            at = zip(values, judged, strict=True)
            found = [(v, j.case[1]) for v, j in at]
            means = [float(np.mean([v for v, n in found if n == size])) for size in sizes]
            lines.append(f"| {name} | {' | '.join(f'{m:.1f}' for m in means)} |")
    return "\n".join(lines) + "\n"


def advice_cost(judged: list[Judged], seconds: Mapping[Case, float]) -> str:
    """Return what advice cost, in shares of fitting every entry once, over all cases."""
    fits = [sum(row["seconds"] for row in j.rows.values()) for j in judged]
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


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--beside", type=Path, help="rows that priors are not fitted to")
    parser.add_argument("--seeds", type=int, nargs="*", help="of the cases; default: all")
    parser.add_argument("--cases", action="store_true", help="list every case too")
    args = parser.parse_args()
    profiles = {
        case: profile
        for case, profile in read_profiles(args.evidence).items()
        if args.seeds is None or case[2] in args.seeds
    }
    logme = {case_of(r): r["logme_by_depth"] for r in read_rows(args.evidence)}
    beside = read_rows(args.beside) if args.beside else []
    judged = judge(read_rows(args.results), profiles, beside)
    if len({j.case[0] for j in judged}) <= FEWEST:
        raise SystemExit("There are too few complete cases to leave a data set out.")
    print(report(judged, logme))
    print(by_size(judged, logme))
    print(advice_cost(judged, {case_of(r): r["advice_s"] for r in read_rows(args.evidence)}))
    if args.cases:
        print(cases_table(judged))


if __name__ == "__main__":
    main()
