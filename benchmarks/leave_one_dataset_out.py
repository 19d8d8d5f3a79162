"""Evaluate advice by leaving datasets out: priors are fitted without the dataset of a case.

They can be fitted without its backbone as well, or to the other collection of datasets alone.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from fit_priors import fit
from numpy.typing import NDArray
from rows import Case, Row, case_of, hits_of
from shared_datasets import NEWER

from advisor.decide.candidates import DecisionInputs
from advisor.decide.priors import Priors, priors_from_record
from advisor.decide.recommend import recommend
from advisor.types.advice import Decision, Recommendation
from advisor.types.options import Prefer

MIN_COVERAGE = 0.8
"""Share of the cases that must have a row for a grid entry to count."""
HALVES = 500
"""Number of random splits of test images and seeds into halves."""
DEFAULT = "{}"
TIMES_S = (15.0, 30.0, 60.0, 120.0, 300.0)
"""Times within which a fit must end in `regret.py --budgets`."""
DEFAULT_POLICY = "advisor, balanced"
"""The advice with default options."""
PREFER: tuple[Prefer, ...] = ("balanced", "accuracy", "cheap")
PREFERENCES = tuple(f"advisor, {p}" for p in PREFER)
"""Names of the policies that follow the advice for a fit without a limit."""
COMPARED = ("partial_fine_tune", "full_fine_tune")

LeaveOut = Literal["dataset", "backbone", "collection"]
Entry = tuple[str, str, int]
"""A strategy, the hyperparameters given to it, as JSON, and the input size of the fit."""
Cases = Mapping[Case, Mapping[Entry, Row]]


@dataclass(frozen=True)
class AdvisedCase:
    """A case, its rows, and the advice of priors fitted without its dataset.

    Attributes
    ----------
    expected
        Test accuracy of every entry, mean over the seeds of this dataset and size.
    by_halves
        Regret of every entry, in points, against the entry that was best with other seeds on other
        images. Entries without per-image results are missing.
    decisions
        Advice by name of the policy.
    """

    case: Case
    rows: Mapping[Entry, Row]
    expected: Mapping[Entry, float]
    by_halves: Mapping[Entry, float]
    inputs: DecisionInputs
    decisions: Mapping[str, Decision]

    def regret(self, entry: Entry) -> float:
        """Return the regret of an entry against the best one, in points."""
        return 100 * (max(self.expected.values()) - self.expected[entry])

    def regret_by_halves(self, entry: Entry) -> float:
        """Return the regret by halves, or the plain one where per-image results are missing."""
        return self.by_halves.get(entry, self.regret(entry))


def entry_of(row: Row) -> Entry:
    """Return the grid entry that a row belongs to."""
    return row["strategy"], json.dumps(row["grid"], sort_keys=True), row["input_px"]


def complete_cases(rows: list[Row], known: Mapping[Case, DecisionInputs]) -> Cases:
    """Return the rows of grid entries that nearly all cases have, for cases that have them all.

    A case with large inputs also has the fits of the same images on smaller inputs, if they are
    by default. Cases are compared with others of the same backbone and input size. Cases without
    any fine-tuning row are left out.
    """
    found_rows: dict[Case, dict[Entry, Row]] = defaultdict(dict)
    for row in rows:
        own = case_of(row)
        for case in (c for c in known if c.draw == own.draw):
            if case == own or (case.input_px > own.input_px and not row["grid"]):
                found_rows[case][entry_of(row)] = row
    cases = {
        case: found
        for case, found in found_rows.items()
        if any(name in COMPARED and px == case.input_px for name, _, px in found)
    }
    complete: dict[Case, dict[Entry, Row]] = {}
    for kind in sorted({kind_of(case) for case in cases}):
        alike = {case: found for case, found in cases.items() if kind_of(case) == kind}
        entries = {e for found in alike.values() for e in found}
        least = MIN_COVERAGE * len(alike)
        wide = {e for e in entries if sum(e in c for c in alike.values()) >= least}
        complete |= {
            case: {e: r for e, r in found.items() if e in wide}
            for case, found in alike.items()
            if wide <= found.keys()
        }
    return complete


def advised_entry(best: Recommendation, rows: Mapping[Entry, Row]) -> Entry:
    """Return the entry that matches a recommendation: the one with most of its hyperparameters."""
    matches = []
    for entry in rows:
        name, given, px = entry
        settings = json.loads(given)
        is_same = name == best.strategy and px == best.input_px
        if is_same and settings.items() <= dict(best.hyperparameters).items():
            matches.append((len(settings), entry))
    return max(matches)[1] if matches else (best.strategy, DEFAULT, best.input_px)


def benchmarked(inputs: DecisionInputs, rows: Mapping[Entry, Row]) -> DecisionInputs:
    """Return the inputs with the candidates that have rows."""
    known = {(name, px) for name, _, px in rows}
    kept = (c for c in inputs.candidates if (c.name, c.input_px) in known)
    return replace(inputs, candidates=tuple(kept))


def kind_of(case: Case) -> tuple[str, int]:
    """Return backbone and input size of a case."""
    return case.backbone, case.input_px


def advise_all(
    rows: list[Row],
    inputs: Mapping[Case, DecisionInputs],
    leave_out: LeaveOut = "dataset",
) -> list[AdvisedCase]:
    """Advise on every case with priors fitted without its dataset.

    Parameters
    ----------
    leave_out
        What the priors do not know: the dataset alone ("dataset"), nor any row of the case's
        backbone ("backbone"), nor any of its collection, the first datasets or the newer ones
        ("collection").
    """
    cases = complete_cases(rows, inputs)
    advised = []
    for name, backbone in sorted({(case.dataset, case.backbone) for case in cases}):
        seen = [r for r in rows if not _is_left_out(r, name, backbone, leave_out)]
        priors = priors_from_record(fit(seen, inputs))
        for case, found in cases.items():
            if (case.dataset, case.backbone) == (name, backbone):
                own = benchmarked(inputs[case], found)
                advised.append(
                    AdvisedCase(
                        case,
                        found,
                        expected_accuracies(case, cases),
                        _by_halves(case, cases),
                        own,
                        _decide(own, priors),
                    )
                )
    return advised


def _is_left_out(row: Row, dataset: str, backbone: str, leave_out: LeaveOut) -> bool:
    if row["set"] == dataset:
        return True
    if leave_out == "collection":
        return (row["set"] in NEWER) == (dataset in NEWER)
    return leave_out == "backbone" and case_of(row).backbone == backbone


def _seeds_of(case: Case, cases: Cases) -> list[Mapping[Entry, Row]]:
    return [rows for other, rows in cases.items() if other._replace(seed=case.seed) == case]


def expected_accuracies(case: Case, cases: Cases) -> dict[Entry, float]:
    """Return the mean accuracy of every entry over the seeds of a case's dataset and size."""
    seeds = _seeds_of(case, cases)

    def accuracy(rows: Mapping[Entry, Row], e: Entry) -> float:
        return float(np.mean([row["accuracy"] for row in _repeats(rows, e)]))

    return {e: float(np.mean([accuracy(rows, e) for rows in seeds])) for e in cases[case]}


def _repeats(rows: Mapping[Entry, Row], entry: Entry) -> list[Row]:
    """Return the rows of a case with the same strategy and hyperparameters as an entry.

    Where evidence-based defaults equal what another entry was given, both rows are repeats of the
    same fit, and the better one is better by chance.
    """
    fitted = ("strategy", "hyperparameters", "input_px")
    return [r for r in rows.values() if all(r[key] == rows[entry][key] for key in fitted)]


def _by_halves(case: Case, cases: Cases) -> dict[Entry, float]:
    """Return the regret of every entry on one half against the best entry of the other half.

    Entries without per-image results are left out. If the best entry is one of them, all entries
    are left out: without the best one, regrets would be too low.
    """
    seeds, expected = _seeds_of(case, cases), expected_accuracies(case, cases)
    known = [e for e in expected if all("hits" in rows[e] for rows in seeds)]
    if not known or max(expected, key=lambda e: expected[e]) not in known:
        return {}
    right = np.array([[_hits(rows, e) for e in known] for rows in seeds])
    lost = 100 * _regret_by_halves(right, np.random.default_rng(0))
    return dict(zip(known, lost.tolist(), strict=True))


def _hits(rows: Mapping[Entry, Row], entry: Entry) -> NDArray[np.float64]:
    """Return the share of an entry's fits that classified each test image correctly, (n_test,)."""
    mean: NDArray[np.float64] = np.mean(
        [hits_of(r) for r in _repeats(rows, entry) if "hits" in r], axis=0
    )
    return mean


def _regret_by_halves(right: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the mean regret by halves of entries, as a share of images, (entries,).

    The best entry is found on one half of the images with some of the seeds. Regret is measured on
    the other half with the other seeds. A single seed is used for both.

    Parameters
    ----------
    right
        Share of fits that classified each test image correctly, (seeds, entries, images).
    """
    seeds, entries, n = right.shape
    lost = np.zeros(entries)
    for _ in range(HALVES):
        first, some = rng.permutation(n) < n // 2, rng.permutation(seeds) < (seeds + 1) // 2
        others = some if seeds == 1 else ~some
        selection = right[some][:, :, first].mean(axis=(0, 2))
        held_out = right[others][:, :, ~first].mean(axis=(0, 2))
        lost += held_out[selection.argmax()] - held_out
    mean: NDArray[np.float64] = lost / HALVES
    return mean


def _decide(inputs: DecisionInputs, priors: Priors) -> dict[str, Decision]:
    """Return the advice by policy: by preference, and within a time."""
    decisions = {f"advisor, {p}": recommend(inputs, priors, prefer=p) for p in PREFER}
    limited = {within(t): recommend(inputs, priors, time_s=t) for t in TIMES_S}
    return decisions | limited


def within(time_s: float) -> str:
    """Return the name of the policy that follows the advice for a fit within a time."""
    return f"advisor, {time_s:.0f} s"
