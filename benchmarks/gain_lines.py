"""Straight lines of what a strategy gains over the evidence that stood before it was fitted."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import Case, Row, case_of
from scipy.optimize import lsq_linear

from advisor.gain import evidence_of, log_odds
from advisor.priors import Usual
from advisor.types import Profile

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
Spreads = Mapping[str, Usual]
Matrix = NDArray[np.float64]


def log_odds_of(row: Row) -> float:
    """Return the log-odds of a row's test accuracy."""
    return log_odds(row["accuracy"], row["n_test"])


def gains_of(rows: list[Row], strategy: str, grid: Mapping[str, Any]) -> list[tuple[Case, float]]:
    """Return the log-odds gained over the linear probe of the same case, case by case."""
    probes = {case_of(r): log_odds_of(r) for r in rows if r["strategy"] == "linear_probe"}
    return [
        (case_of(r), log_odds_of(r) - probes[case_of(r)])
        for r in rows
        if r["strategy"] == strategy and r["grid"] == grid and case_of(r) in probes
    ]


def guess_of(strategy: str, usual: Spreads) -> Mapping[str, float]:
    """Return the weights that a strategy's line leans on; of the SVM: its lead is what it was."""
    own = {SVM: {"svm": usual["svm"].sd}, "from_scratch": SCRATCH_GUESS}
    return own.get(strategy, GUESS)


def unseen_gains(
    gains: list[tuple[Case, float]],
    profiles: Profiles,
    usual: Spreads,
    guess: Mapping[str, float] = GUESS,
) -> Matrix:
    """Foretell the gain of every case by a line fitted to the other data sets."""
    x = np.array([standardised(profiles[case], usual) for case, _ in gains])
    y = np.array([gain for _, gain in gains])
    sets = np.array([case[0] for case, _ in gains])
    foretold = np.zeros_like(y)
    for name in np.unique(sets):
        out = sets == name
        if not out.all():
            line = fit_line(x[~out], y[~out], usual["probe"].sd, guess)
            foretold[out] = apply_line(line, x[out])
    return foretold


def standardised(profile: Profile, usual: Spreads) -> list[float]:
    """Return the evidence of a case in spreads of what is usual, drawn to it by its noise."""
    evidence = evidence_of(profile)
    return [evidence[name].beside(usual[name])[0] for name in SIGNS]


def fit_line(x: Matrix, y: Matrix, probe_sd: float, guess: Mapping[str, float]) -> Matrix:
    """Fit intercept and weights, each with the sign it may have, leaning on a guess."""
    design = np.column_stack([np.ones(len(x)), x])
    drawn = np.column_stack([np.zeros(x.shape[1]), np.sqrt(RIDGE) * np.eye(x.shape[1])])
    signs = SIGNS | {"probe": (SIGNS["probe"][0] * probe_sd, 0.0)}
    low, high = zip((-np.inf, np.inf), *signs.values(), strict=True)
    found = lsq_linear(
        np.vstack([design, drawn]),
        np.concatenate([y, np.sqrt(RIDGE) * np.array([guess.get(n, 0.0) for n in SIGNS])]),
        (np.array(low), np.array(high)),
        method="bvls",
    )
    solution: Matrix = found.x
    return solution


def apply_line(line: Matrix, x: Matrix) -> Matrix:
    """Return what a line says of some evidence, (cases,)."""
    values: Matrix = line[0] + x @ line[1:]
    return values


def drift_of(x: Matrix, usual: Spreads, sd: float) -> float:
    """Return the standard deviation of the line's change with ten times the pictures."""
    design = np.column_stack([np.ones(len(x)), x])
    ridge = RIDGE * np.diag([0.0, *np.ones(x.shape[1])])
    ways = np.array([0.0, *((n in ("size", "total")) / usual[n].sd for n in SIGNS)])
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
