"""Straight lines of what a strategy gains over the evidence that stood before it was fitted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rows import Case, Row, case_of
from scipy.optimize import lsq_linear

from advisor.decide.gain_model import evidence_of, log_odds, reliability
from advisor.decide.priors import Prior
from advisor.types.profile import Profile

PROBE, SVM = "linear_probe", "layer_svm"
RIDGE = 10.0
"""Weights are drawn to a guess as by so many cases, evidence one standard deviation from usual."""
GUESS: Mapping[str, float] = {"far": 0.4, "probe": -0.2}
"""The rule of thumb, as log-odds a standard deviation; nothing is guessed of other evidence."""
SCRATCH_GUESS: Mapping[str, float] = {**GUESS, "control": -0.4, "pixels": 0.4}
"""What pretraining gains over random weights speaks against doing without it, pixels that do
nearly as well as features speak for it."""
SD_GUESS, SD_CASES = 0.8, 2.0
"""Spreads start as if so many cases had shown this."""
SIGNS: dict[str, tuple[float, float]] = {
    "far": (0.0, np.inf),
    "probe": (-0.9, 0.0),  # by log-odds: a better probe never lowers what training promises
    "svm": (0.0, np.inf),
    "size": (0.0, np.inf),
    "total": (0.0, np.inf),
    "control": (-np.inf, np.inf),
    "pixels": (-np.inf, np.inf),
    "slope": (-np.inf, np.inf),
}
Profiles = Mapping[Case, Profile]
Spreads = Mapping[str, Prior]
Matrix = NDArray[np.float64]


class Gained(NamedTuple):
    """The log-odds that a fit gained over the linear probe of its case.

    `noise` is their standard deviation from test images being few, as if the two did not share
    their errors.
    """

    case: Case
    gain: float
    noise: float


class Line(NamedTuple):
    """Intercept and weights, (1 + evidence,), and how far each case counted, (cases,)."""

    weights: Matrix
    exact: Matrix


def log_odds_of(row: Row) -> float:
    """Return the log-odds of a row's test accuracy."""
    return log_odds(row["accuracy"], row["n_test"])


def gains_of(rows: list[Row], strategy: str, grid: Mapping[str, Any]) -> list[Gained]:
    """Return what a strategy gained over the linear probe of the same case, case by case."""
    probes = {case_of(r): r for r in rows if r["strategy"] == "linear_probe"}
    return [
        Gained(case, log_odds_of(row) - log_odds_of(probe), np.hypot(_noise(row), _noise(probe)))
        for row in rows
        if row["strategy"] == strategy
        and row["grid"] == grid
        and (probe := probes.get(case := case_of(row))) is not None
    ]


def gained_by_case(rows: list[Row], strategy: str, grid: Mapping[str, Any]) -> dict[Case, float]:
    """Return the log-odds gained over the linear probe, by case."""
    return {g.case: g.gain for g in gains_of(rows, strategy, grid)}


def _noise(row: Row) -> float:
    """Return the standard deviation of a row's log-odds, were its test images drawn again."""
    return float(2 * np.cosh(log_odds_of(row) / 2) / np.sqrt(row["n_test"]))


def guess_of(strategy: str, prior: Spreads) -> Mapping[str, float]:
    """Return the weights that a strategy's line leans on; of the SVM: its lead is what it was."""
    own = {SVM: {"svm": prior["svm"].sd}, "from_scratch": SCRATCH_GUESS}
    return own.get(strategy, GUESS)


def unseen_gains(
    gains: Sequence[Gained],
    profiles: Profiles,
    prior: Spreads,
    guess: Mapping[str, float] = GUESS,
) -> Matrix:
    """Foretell the gain of every case by a line fitted to the other datasets."""
    sets = np.array([g.case[0] for g in gains])
    foretold = np.zeros(len(gains))
    for name in np.unique(sets):
        others = [g for g in gains if g.case[0] != name]
        if others:
            line = fit_line(others, profiles, prior, guess)
            own = evidence_matrix([g for g in gains if g.case[0] == name], profiles, prior)
            foretold[sets == name] = apply_line(line, own)
    return foretold


def evidence_matrix(gains: Sequence[Gained], profiles: Profiles, prior: Spreads) -> Matrix:
    """Return the standardised evidence of cases, a row each."""
    return np.array([standardised(profiles[g.case], prior) for g in gains])


def standardised(profile: Profile, prior: Spreads) -> list[float]:
    """Return the evidence of a case in spreads of what is usual, drawn to it by its noise."""
    evidence = evidence_of(profile)
    return [evidence[name].standardised(prior[name])[0] for name in SIGNS]


def fit_line(
    gains: Sequence[Gained], profiles: Profiles, prior: Spreads, guess: Mapping[str, float]
) -> Line:
    """Fit intercept and weights, each with the sign it may have, leaning on a guess.

    A case counts as far as its test is exact: in full without noise, and by half where noise is as
    large as what such a line leaves open.
    """
    x = evidence_matrix(gains, profiles, prior)
    y, noise = (np.array([g[i] for g in gains]) for i in (1, 2))
    probe_sd = prior["probe"].sd
    alike = Line(_ridge(x, y, np.ones(len(y)), probe_sd, guess), np.ones(len(y)))
    spread = exact_spread(y - apply_line(alike, x), noise, SD_GUESS)
    exact = np.array([reliability(sd, spread) for sd in noise])
    return Line(_ridge(x, y, exact, probe_sd, guess), exact)


def _ridge(
    x: Matrix, y: Matrix, exact: Matrix, probe_sd: float, guess: Mapping[str, float]
) -> Matrix:
    design = np.column_stack([np.ones(len(x)), x]) * np.sqrt(exact)[:, None]
    drawn = np.column_stack([np.zeros(x.shape[1]), np.sqrt(RIDGE) * np.eye(x.shape[1])])
    signs = SIGNS | {"probe": (SIGNS["probe"][0] * probe_sd, 0.0)}
    low, high = zip((-np.inf, np.inf), *signs.values(), strict=True)
    leaning = np.sqrt(RIDGE) * np.array([guess.get(n, 0.0) for n in SIGNS])
    found = lsq_linear(
        np.vstack([design, drawn]),
        np.concatenate([y * np.sqrt(exact), leaning]),
        (np.array(low), np.array(high)),
        method="bvls",
    )
    solution: Matrix = found.x
    return solution


def apply_line(line: Line, x: Matrix) -> Matrix:
    """Return what a line says of some evidence, (cases,)."""
    values: Matrix = line.weights[0] + x @ line.weights[1:]
    return values


def drift_of(line: Line, x: Matrix, prior: Spreads, sd: float) -> float:
    """Return the standard deviation of a line's change with ten times the images."""
    design = np.column_stack([np.ones(len(x)), x]) * np.sqrt(line.exact)[:, None]
    ridge = RIDGE * np.diag([0.0, *np.ones(x.shape[1])])
    ways = np.array([0.0, *((n in ("size", "total")) / prior[n].sd for n in SIGNS)])
    return round(float(sd * np.sqrt(ways @ np.linalg.inv(design.T @ design + ridge) @ ways)), 3)


def spread_of(missed: Matrix) -> float:
    """Return the standard deviation of what is missed, leaning on a guess while cases are few."""
    total = float(np.sum(missed**2)) + SD_CASES * SD_GUESS**2
    return round(float(np.sqrt(total / (len(missed) + SD_CASES))), 3)


def exact_spread(values: Matrix, noise: Matrix, guess: float) -> float:
    """Return the standard deviation of values without their noise, leaning on a guess."""
    if not len(values):
        return guess
    weight = 1 / (guess**2 + noise**2 + 1e-12)
    middle = weight @ values / weight.sum()
    beyond = float(weight @ ((values - middle) ** 2 - noise**2)) * guess**2
    share = float(weight.sum()) * guess**2
    variance = (beyond + SD_CASES * guess**2) / (share + SD_CASES)
    return float(np.sqrt(max(variance, (guess / 4) ** 2)))
