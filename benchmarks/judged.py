"""Cases on which advice is judged by priors that never saw their dataset."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from fit_priors import fit
from numpy.typing import NDArray
from rows import Case, Row, case_of, hits_of

from advisor.decide.priors import Priors, priors_of
from advisor.decide.recommend import recommend
from advisor.types.advice import Decision, Recommendation
from advisor.types.options import Prefer
from advisor.types.profile import Profile

WIDELY = 0.8
"""Share of the cases that a grid entry must cover to count."""
HALVES = 500
"""Random halves of the test images and of the seeds."""
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
        What an entry loses, in points, against the one that was best with other seeds on other
        images; none where single hits are not known.
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


def judge(rows: list[Row], profiles: Mapping[Case, Profile]) -> list[Judged]:
    """Advise on every case with priors that never saw its dataset."""
    cases = complete_cases(rows, profiles)
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

    def accuracy(rows: Mapping[Entry, Row], e: Entry) -> float:
        return float(np.mean([row["accuracy"] for row in _repeats(rows, e)]))

    return {e: float(np.mean([accuracy(rows, e) for rows in seeds])) for e in cases[case]}


def _repeats(rows: Mapping[Entry, Row], entry: Entry) -> list[Row]:
    """Return the rows of a case that were fitted as an entry was.

    Where the evidence leads a default to what another entry has fixed, both are the same fit,
    and the better of two is only the luckier.
    """
    fitted = ("strategy", "hyperparameters")
    return [r for r in rows.values() if all(r[key] == rows[entry][key] for key in fitted)]


def _by_halves(case: Case, cases: Cases) -> dict[Entry, float]:
    """Return the points that every entry loses on one half to what was best on the other.

    Entries whose single hits are not known are left out; all are if the best of all is one of
    them, so that nothing looks better than it is.
    """
    seeds, expected = _seeds_of(case, cases), _expected(case, cases)
    known = [e for e in expected if all("hits" in rows[e] for rows in seeds)]
    if not known or max(expected, key=lambda e: expected[e]) not in known:
        return {}
    right = np.array([[_hits(rows, e) for e in known] for rows in seeds])
    lost = 100 * _lost_by_halves(right, np.random.default_rng(0))
    return dict(zip(known, lost.tolist(), strict=True))


def _hits(rows: Mapping[Entry, Row], entry: Entry) -> NDArray[np.float64]:
    """Return how often each test image was classified correctly by an entry's fits."""
    mean: NDArray[np.float64] = np.mean(
        [hits_of(r) for r in _repeats(rows, entry) if "hits" in r], axis=0
    )
    return mean


def _lost_by_halves(right: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return what each of some entries loses to the best, (entries,).

    Parameters
    ----------
    right
        How often each test image was classified correctly, (seeds, entries, images). The best
        is found on one half of the images and with some of the seeds, and compared on the other
        half with the other seeds; a single seed has to do for both.
    """
    seeds, entries, n = right.shape
    lost = np.zeros(entries)
    for _ in range(HALVES):
        first, some = rng.permutation(n) < n // 2, rng.permutation(seeds) < (seeds + 1) // 2
        others = some if seeds == 1 else ~some
        there = right[some][:, :, first].mean(axis=(0, 2))
        here = right[others][:, :, ~first].mean(axis=(0, 2))
        lost += here[there.argmax()] - here
    mean: NDArray[np.float64] = lost / HALVES
    return mean


def _decide(profile: Profile, priors: Priors) -> dict[str, Decision]:
    bare = replace(profile, pilot=None)
    preferences: tuple[Prefer, ...] = ("balanced", "accuracy", "cheap")
    decisions = {f"advisor, {p}": recommend(bare, priors, prefer=p) for p in preferences}
    for p in preferences:  # where there were too few images for a pilot, both are the same
        decisions[f"advisor with pilot, {p}"] = recommend(profile, priors, prefer=p)
    return decisions
