"""Linear regression of a strategy's gain over the linear probe on evidence measured before it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rows import SUITE_PX, Case, Row, case_of, seconds_of
from scipy.optimize import lsq_linear

from advisor.decide.candidates import DecisionInputs
from advisor.decide.gain_model import (
    UNKNOWN,
    Evidence,
    LogOdds,
    evidence_of,
    log_odds,
    reliability,
    shrunk_to_prior,
)
from advisor.decide.priors import Prior

PROBE, SVM = "linear_probe", "layer_svm"
RIDGE = 20.0
"""Weights are shrunk to their prior as by this many cases, each with evidence one standard
deviation from its mean. 10 to 80 predicted left-out datasets about equally well."""
HUBER, ITERATIONS = 1.345, 5
"""Distance from the model, in standard deviations, from which the loss grows linearly (95%
efficiency where errors are normal), and the number of reweightings."""
PRIOR_WEIGHTS: Mapping[str, float] = {"far": 0.1, "probe": -0.1, "lost": -0.05}
"""The rule of thumb, as log-odds per standard deviation of the evidence; other weights: 0."""
OWN_PRIOR_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    PROBE: {"lost": -0.1},
    SVM: {"lost": -0.1},
    "from_scratch": {**PRIOR_WEIGHTS, "pixels": 0.4},
}
"""Prior weights of some strategies. Pixels that do nearly as well as features are evidence for
training from scratch."""
PRIOR_SD, PRIOR_CASES = 0.8, 2.0
"""Prior of the residual standard deviation, and the number of cases that it counts as."""
BOUNDS: dict[str, tuple[float, float]] = {
    "far": (0.0, np.inf),
    # Per log-odds: a better probe never lowers the predicted accuracy of a training run.
    "probe": (-0.9, 0.0),
    "svm": (0.0, np.inf),
    "size": (0.0, np.inf),
    "total": (0.0, np.inf),
    "classes": (-np.inf, np.inf),
    "pixels": (-np.inf, np.inf),
    "neighbours": (-np.inf, np.inf),
    "px": (-np.inf, np.inf),
    # Smaller inputs never show more of an image.
    "lost": (-np.inf, 0.0),
    "lost_near": (-np.inf, 0.0),
}
"""Lower and upper bound of the weight of every piece of evidence."""
OF_PROBE = ("px", "lost", "lost_near")
"""Evidence of the linear probe's own model: its accuracy is measured, not predicted."""
Inputs = Mapping[Case, DecisionInputs]
EvidencePriors = Mapping[str, Prior]
Matrix = NDArray[np.float64]


class ObservedGain(NamedTuple):
    """Log-odds of test accuracy that a fit gained over what its profile says of a linear probe.

    Attributes
    ----------
    case
        The case of the profile. The fit may have smaller inputs (`input_px`) than the profile.
    expected
        The linear probe's cross-validated accuracy, shrunk to the prior.
    gain
        Log-odds of the fit's test accuracy minus the mean of `expected`.
    n_test
        Number of test images.
    seconds
        Measured time of the fit; NaN if it was not recorded.
    """

    strategy: str
    case: Case
    input_px: int
    expected: LogOdds
    gain: float
    n_test: int
    seconds: float

    @property
    def noise(self) -> float:
        """Standard deviation of the gain due to the finite numbers of images."""
        of_test = 2 * np.cosh((self.expected.mean + self.gain) / 2) / np.sqrt(self.n_test)
        return float(np.hypot(self.expected.sd, of_test))


class LinearModel(NamedTuple):
    """Intercept and weights, (1 + evidence,), and the weight of each case in the fit, (cases,)."""

    weights: Matrix
    case_weights: Matrix


def log_odds_of(row: Row) -> float:
    """Return the log-odds of a row's test accuracy."""
    return log_odds(row["accuracy"], row["n_test"])


def gains_of(
    rows: list[Row],
    strategy: str,
    inputs: Inputs,
    prior: EvidencePriors,
    grid: Mapping[str, Any] | None = None,
) -> list[ObservedGain]:
    """Return the gains of a strategy, by default with its defaults, for every profile.

    A fit counts for the profile of the same size and for those of larger inputs, if the strategy
    was a candidate when the profile was measured: later strategies have no cost there.
    """
    found = []
    for row in rows:
        if row["strategy"] != strategy or row["grid"] != (grid or {}):
            continue
        own = case_of(row)
        for case in (own._replace(input_px=px) for px in SUITE_PX if px >= own.input_px):
            if case in inputs and any(c.name == strategy for c in inputs[case].candidates):
                expected = _expected(inputs[case], prior)
                fit = (log_odds_of(row) - expected.mean, row["n_test"], seconds_of(row))
                found.append(ObservedGain(strategy, case, own.input_px, expected, *fit))
    return found


def _expected(inputs: DecisionInputs, prior: EvidencePriors) -> LogOdds:
    profile = inputs.profile
    accuracy = profile.linear_probe.accuracy.mid
    return shrunk_to_prior(accuracy, profile.n_measured, prior["probe"])


def prior_weights_of(strategy: str, prior: EvidencePriors) -> Mapping[str, float]:
    """Return the weights that a strategy's model is shrunk to.

    For the layer SVM: its gain on test is the lead that cross-validation measured.
    """
    own = OWN_PRIOR_WEIGHTS.get(strategy, PRIOR_WEIGHTS)
    return {**own, "svm": prior["svm"].sd} if strategy == SVM else own


def prior_of_evidence(inputs: Inputs, fits: Sequence[tuple[Case, int]]) -> EvidencePriors:
    """Return mean and standard deviation of every piece of evidence over profiles and fits."""
    prior = {}
    for name in BOUNDS:
        seen = [_evidence(case, px, inputs)[name] for case, px in fits]
        known = [e for e in seen if e != UNKNOWN]
        values, noise = np.array([e.value for e in known]), np.array([e.noise for e in known])
        mean = float(values.mean()) if known else 0.0
        sd = noise_free_sd(values, noise, float(values.std()) if known else 1.0)
        prior[name] = Prior(round(mean, 3), round(max(sd, 0.05), 3))
    return prior


def left_out_gains(
    gains: Sequence[ObservedGain],
    inputs: Inputs,
    prior: EvidencePriors,
    strategy: str,
) -> Matrix:
    """Predict the gain of every case by a model fitted to the other datasets."""
    datasets = np.array([g.case.dataset for g in gains])
    x = evidence_matrix(gains, inputs, prior)
    predicted = np.zeros(len(gains))
    for name in np.unique(datasets):
        out = datasets == name
        if not out.all():
            others = [g for g, o in zip(gains, out, strict=True) if not o]
            model = fit_model(others, x[~out], prior, strategy)
            predicted[out] = apply_model(model, x[out])
    return predicted


def evidence_matrix(
    gains: Sequence[ObservedGain], inputs: Inputs, prior: EvidencePriors
) -> Matrix:
    """Return the standardised evidence of cases, (cases, evidence)."""
    return np.array(
        [
            [e.standardised(prior[n])[0] for n, e in _evidence(g.case, g.input_px, inputs).items()]
            for g in gains
        ]
    ).reshape(len(gains), len(BOUNDS))


def _evidence(case: Case, input_px: int, inputs: Inputs) -> Mapping[str, Evidence]:
    found = evidence_of(inputs[case].profile, input_px)
    return {name: found[name] for name in BOUNDS}


def fit_model(
    gains: Sequence[ObservedGain],
    x: Matrix,
    prior: EvidencePriors,
    strategy: str,
    huber: float = HUBER,
) -> LinearModel:
    """Fit intercept and bounded weights by robust ridge regression, shrunk to prior weights.

    A case counts by the reliability of its accuracies: 1 without noise, and 1/2 where the noise
    is as large as the residual standard deviation of an unweighted fit. It counts less if it is
    further than `huber` standard deviations from the model: test images of some datasets differ
    from all others.

    Parameters
    ----------
    x
        Standardised evidence of the gains (`evidence_matrix`).

    References
    ----------
    P. Huber, Robust estimation of a location parameter, 1964.
    """
    y, noise = np.array([g.gain for g in gains]), np.array([g.noise for g in gains])
    weights, ones = prior_weights_of(strategy, prior), np.ones(len(y))
    used = np.array([strategy != PROBE or name in OF_PROBE for name in BOUNDS])

    def solve(case_weights: Matrix) -> Matrix:
        return _ridge(x, y, case_weights, used, prior["probe"].sd, weights)

    model = LinearModel(solve(ones), ones)
    residual_sd = noise_free_sd(y - apply_model(model, x), noise, PRIOR_SD)
    reliable = np.array([reliability(sd, residual_sd) for sd in noise])
    for _ in range(ITERATIONS):
        off = np.abs(y - apply_model(model, x)) / np.hypot(residual_sd, noise)
        case_weights = reliable * np.minimum(1.0, huber / np.maximum(off, 1e-9))
        model = LinearModel(solve(case_weights), case_weights)
    return model


def _ridge(
    x: Matrix,
    y: Matrix,
    case_weights: Matrix,
    used: NDArray[np.bool_],
    probe_sd: float,
    prior_weights: Mapping[str, float],
) -> Matrix:
    """Return intercept and weights; those of evidence that is not used are 0."""
    names = [name for name, is_used in zip(BOUNDS, used, strict=True) if is_used]
    bounds = BOUNDS | {"probe": (BOUNDS["probe"][0] * probe_sd, 0.0)}
    centre = np.array([prior_weights.get(n, 0.0) for n in names])
    solution = np.zeros(1 + len(BOUNDS))
    solution[np.concatenate([[True], used])] = bounded_ridge(
        x[:, used], y, case_weights, [bounds[name] for name in names], centre
    )
    return solution


def bounded_ridge(
    x: Matrix,
    y: Matrix,
    case_weights: Matrix,
    bounds: Sequence[tuple[float, float]],
    centre: Matrix,
) -> Matrix:
    """Return intercept and bounded weights, (1 + columns,), shrunk to `centre` by `RIDGE`."""
    root = np.sqrt(case_weights)
    design = np.column_stack([np.ones(len(x)), x]) * root[:, None]
    n = x.shape[1]
    penalty = np.column_stack([np.zeros(n), np.sqrt(RIDGE) * np.eye(n)])
    low, high = zip((-np.inf, np.inf), *bounds, strict=True)
    found = lsq_linear(
        np.vstack([design, penalty]),
        np.concatenate([y * root, np.sqrt(RIDGE) * centre]),
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
