"""Linear regression of a strategy's gain over the linear probe on evidence measured before it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rows import Case, Row, case_of
from scipy.optimize import lsq_linear

from advisor.decide.candidates import DecisionInputs
from advisor.decide.gain_model import evidence_of, log_odds, reliability
from advisor.decide.priors import Prior
from advisor.types.profile import Profile

PROBE, SVM = "linear_probe", "layer_svm"
RIDGE = 10.0
"""Weights are shrunk to their prior as by this many cases, each with evidence one standard
deviation from its mean."""
PRIOR_WEIGHTS: Mapping[str, float] = {"far": 0.4, "probe": -0.2}
"""The rule of thumb, as log-odds per standard deviation of the evidence; other weights: 0."""
SCRATCH_PRIOR_WEIGHTS: Mapping[str, float] = {**PRIOR_WEIGHTS, "control": -0.4, "pixels": 0.4}
"""A large gain of pretrained over random weights is evidence against training from scratch; pixels
that do nearly as well as features are evidence for it."""
PRIOR_SD, PRIOR_CASES = 0.8, 2.0
"""Prior of the residual standard deviation, and the number of cases that it counts as."""
BOUNDS: dict[str, tuple[float, float]] = {
    "far": (0.0, np.inf),
    # Per log-odds: a better probe never lowers the predicted accuracy of a training run.
    "probe": (-0.9, 0.0),
    "svm": (0.0, np.inf),
    "size": (0.0, np.inf),
    "total": (0.0, np.inf),
    "control": (-np.inf, np.inf),
    "pixels": (-np.inf, np.inf),
    "slope": (-np.inf, np.inf),
}
"""Lower and upper bound of the weight of every piece of evidence."""
Inputs = Mapping[Case, DecisionInputs]
EvidencePriors = Mapping[str, Prior]
Matrix = NDArray[np.float64]


class ObservedGain(NamedTuple):
    """Log-odds of test accuracy that a fit gained over the linear probe of its case.

    `noise` is the standard deviation of the gain due to the finite number of test images, as if
    the errors of the two fits were independent.
    """

    case: Case
    gain: float
    noise: float


class LinearModel(NamedTuple):
    """Intercept and weights, (1 + evidence,), and the weight of each case in the fit, (cases,)."""

    weights: Matrix
    case_weights: Matrix


def log_odds_of(row: Row) -> float:
    """Return the log-odds of a row's test accuracy."""
    return log_odds(row["accuracy"], row["n_test"])


def gains_of(rows: list[Row], strategy: str, grid: Mapping[str, Any]) -> list[ObservedGain]:
    """Return the gains of a strategy over the linear probe of the same case, case by case."""
    probes = {case_of(r): r for r in rows if r["strategy"] == "linear_probe"}
    return [
        ObservedGain(
            case, log_odds_of(row) - log_odds_of(probe), np.hypot(_noise(row), _noise(probe))
        )
        for row in rows
        if row["strategy"] == strategy
        and row["grid"] == grid
        and (probe := probes.get(case := case_of(row))) is not None
    ]


def gain_by_case(rows: list[Row], strategy: str, grid: Mapping[str, Any]) -> dict[Case, float]:
    """Return the log-odds gained over the linear probe, by case."""
    return {g.case: g.gain for g in gains_of(rows, strategy, grid)}


def _noise(row: Row) -> float:
    """Return the standard deviation of a row's log-odds over draws of its test images."""
    return float(2 * np.cosh(log_odds_of(row) / 2) / np.sqrt(row["n_test"]))


def prior_weights_of(strategy: str, prior: EvidencePriors) -> Mapping[str, float]:
    """Return the weights that a strategy's model is shrunk to.

    For the layer SVM: its gain on test is the lead that cross-validation measured.
    """
    own = {SVM: {"svm": prior["svm"].sd}, "from_scratch": SCRATCH_PRIOR_WEIGHTS}
    return own.get(strategy, PRIOR_WEIGHTS)


def left_out_gains(
    gains: Sequence[ObservedGain],
    inputs: Inputs,
    prior: EvidencePriors,
    prior_weights: Mapping[str, float] = PRIOR_WEIGHTS,
) -> Matrix:
    """Predict the gain of every case by a model fitted to the other datasets."""
    datasets = np.array([g.case[0] for g in gains])
    predicted = np.zeros(len(gains))
    for name in np.unique(datasets):
        others = [g for g in gains if g.case[0] != name]
        if others:
            model = fit_model(others, inputs, prior, prior_weights)
            own = evidence_matrix([g for g in gains if g.case[0] == name], inputs, prior)
            predicted[datasets == name] = apply_model(model, own)
    return predicted


def evidence_matrix(
    gains: Sequence[ObservedGain], inputs: Inputs, prior: EvidencePriors
) -> Matrix:
    """Return the standardised evidence of cases, (cases, evidence)."""
    return np.array([standardised(inputs[g.case].profile, prior) for g in gains])


def standardised(profile: Profile, prior: EvidencePriors) -> list[float]:
    """Return the evidence of a case in prior standard deviations, shrunk to the prior by noise."""
    evidence = evidence_of(profile)
    return [evidence[name].standardised(prior[name])[0] for name in BOUNDS]


def fit_model(
    gains: Sequence[ObservedGain],
    inputs: Inputs,
    prior: EvidencePriors,
    prior_weights: Mapping[str, float],
) -> LinearModel:
    """Fit intercept and bounded weights by ridge regression, shrunk to prior weights.

    A case counts by the reliability of its test accuracy: 1 without noise, and 1/2 where the noise
    is as large as the residual standard deviation of an unweighted fit.
    """
    x = evidence_matrix(gains, inputs, prior)
    y, noise = (np.array([g[i] for g in gains]) for i in (1, 2))
    probe_sd, ones = prior["probe"].sd, np.ones(len(y))
    unweighted = LinearModel(_ridge(x, y, ones, probe_sd, prior_weights), ones)
    residual_sd = noise_free_sd(y - apply_model(unweighted, x), noise, PRIOR_SD)
    case_weights = np.array([reliability(sd, residual_sd) for sd in noise])
    return LinearModel(_ridge(x, y, case_weights, probe_sd, prior_weights), case_weights)


def _ridge(
    x: Matrix, y: Matrix, case_weights: Matrix, probe_sd: float, prior_weights: Mapping[str, float]
) -> Matrix:
    root = np.sqrt(case_weights)
    design = np.column_stack([np.ones(len(x)), x]) * root[:, None]
    penalty = np.column_stack([np.zeros(x.shape[1]), np.sqrt(RIDGE) * np.eye(x.shape[1])])
    bounds = BOUNDS | {"probe": (BOUNDS["probe"][0] * probe_sd, 0.0)}
    low, high = zip((-np.inf, np.inf), *bounds.values(), strict=True)
    centre = np.sqrt(RIDGE) * np.array([prior_weights.get(n, 0.0) for n in BOUNDS])
    found = lsq_linear(
        np.vstack([design, penalty]),
        np.concatenate([y * root, centre]),
        (np.array(low), np.array(high)),
        method="bvls",
    )
    solution: Matrix = found.x
    return solution


def apply_model(model: LinearModel, x: Matrix) -> Matrix:
    """Return the gains that a model predicts from evidence, (cases,)."""
    values: Matrix = model.weights[0] + x @ model.weights[1:]
    return values


def drift_of(model: LinearModel, x: Matrix, prior: EvidencePriors, sd: float) -> float:
    """Return the standard deviation of the change of a prediction with ten times the images."""
    design = np.column_stack([np.ones(len(x)), x]) * np.sqrt(model.case_weights)[:, None]
    ridge = RIDGE * np.diag([0.0, *np.ones(x.shape[1])])
    step = np.array([0.0, *((n in ("size", "total")) / prior[n].sd for n in BOUNDS)])
    return round(float(sd * np.sqrt(step @ np.linalg.inv(design.T @ design + ridge) @ step)), 3)


def shrunk_sd(residuals: Matrix) -> float:
    """Return the standard deviation of residuals, shrunk to its prior while cases are few."""
    total = float(np.sum(residuals**2)) + PRIOR_CASES * PRIOR_SD**2
    return round(float(np.sqrt(total / (len(residuals) + PRIOR_CASES))), 3)


def noise_free_sd(values: Matrix, noise: Matrix, prior_sd: float) -> float:
    """Return the standard deviation of values without their noise, shrunk to its prior."""
    if not len(values):
        return prior_sd
    weight = 1 / (prior_sd**2 + noise**2 + 1e-12)
    mean = weight @ values / weight.sum()
    excess = float(weight @ ((values - mean) ** 2 - noise**2)) * prior_sd**2
    share = float(weight.sum()) * prior_sd**2
    variance = (excess + PRIOR_CASES * prior_sd**2) / (share + PRIOR_CASES)
    return float(np.sqrt(max(variance, (prior_sd / 4) ** 2)))
