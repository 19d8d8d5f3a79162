"""Compare models of a strategy's gain over the linear probe, on datasets they were not fitted to.

Every model sees the same evidence and the same gains, and predicts the gains of one dataset after
the other from the rest:

lines          today's model: bounded weights, ridge towards the rule of thumb, Huber's loss
               (`gain_regression`)
squared        the same with squared loss, as until 2026-11-30
interactions   the same as squared, with products of distance and size, and of probe and size
hierarchical   Bayesian lines with a random term per dataset, without bounds
gp             the same, and a Gaussian process over the evidence

The last two are scikit-learn's Gaussian processes; their variances maximise the likelihood. The
widths of the intervals are calibrated for every model on the other datasets' left-out errors, as
those of the priors are. The regret is that of choosing the entry of the highest predicted
accuracy, whatever it costs. Differences to the lines are given with 90% bootstrap intervals over
datasets.

Run:      python benchmarks/gain_models.py [--models lines interactions]
Cost:     half a minute per model of lines on one core, minutes with Gaussian processes.
Expected: docs/benchmarks/intervals.md, section "Models of the gain".
"""

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fit_priors import MIN_CASES, prior_of_rows, spread_of
from gain_regression import (
    BOUNDS,
    PRIOR_SD,
    PROBE,
    RIDGE,
    EvidencePriors,
    Inputs,
    Matrix,
    ObservedGain,
    apply_model,
    bounded_ridge,
    evidence_matrix,
    fit_model,
    gains_of,
    noise_free_sd,
    prior_weights_of,
)
from leave_one_dataset_out import DEFAULT, Cases, complete_cases, expected_accuracies, kind_of
from numpy.typing import NDArray
from regret import bootstrap
from rows import EVIDENCE, RESULTS, Case, Row, case_of, read_inputs, read_rows
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    RBF,
    ConstantKernel,
    DotProduct,
    Kernel,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)

from advisor.decide.gain_model import Z, accuracy_of, angle_of
from advisor.decide.priors import SPREAD_KINDS, Spread, spread_kind
from strategies.core.metrics import LEVEL
from strategies.registry import get_strategy

PRODUCTS = (("far", "size"), ("probe", "size"))
ID_SCALE = 1e-9
"""Scale of the column with the number of the dataset, which distances and products do not see."""

Predicted = tuple[Matrix, Matrix]
"""Means and standard deviations of gains, in log-odds."""


class Seen(NamedTuple):
    """What a model is fitted to.

    Attributes
    ----------
    x
        Standardised evidence, (cases, evidence).
    y, noise
        Gains in log-odds and their standard deviations, (cases,).
    dataset
        Number of the dataset, (cases,).
    """

    gains: Sequence[ObservedGain]
    x: Matrix
    y: Matrix
    noise: Matrix
    dataset: NDArray[np.int64]
    prior: EvidencePriors
    strategy: str

    def part(self, chosen: NDArray[np.bool_]) -> "Seen":
        """Return some of the cases."""
        gains = [g for g, is_in in zip(self.gains, chosen, strict=True) if is_in]
        return self._replace(
            gains=gains,
            x=self.x[chosen],
            y=self.y[chosen],
            noise=self.noise[chosen],
            dataset=self.dataset[chosen],
        )


Model = Callable[[Seen, Matrix], Predicted]


def lines(seen: Seen, x: Matrix) -> Predicted:
    """Predict by the model of the priors."""
    model = fit_model(seen.gains, seen.x, seen.prior, seen.strategy)
    return apply_model(model, x), np.full(len(x), _sd_of(seen, apply_model(model, seen.x)))


def squared(seen: Seen, x: Matrix) -> Predicted:
    """Predict by lines of least squares."""
    model = fit_model(seen.gains, seen.x, seen.prior, seen.strategy, huber=np.inf)
    return apply_model(model, x), np.full(len(x), _sd_of(seen, apply_model(model, seen.x)))


def interactions(seen: Seen, x: Matrix) -> Predicted:
    """Predict by lines with products of evidence; the probe's own model has none."""
    if seen.strategy == PROBE:
        return squared(seen, x)
    weights = prior_weights_of(seen.strategy, seen.prior)
    centre = np.array([weights.get(n, 0.0) for n in BOUNDS] + [0.0] * len(PRODUCTS))
    scale = seen.prior["probe"].sd
    bounds = [(low * scale, high) if n == "probe" else (low, high) for n, (low, high) in _BOUNDS]
    bounds += [(-np.inf, np.inf)] * len(PRODUCTS)
    wide, case_weights = _with_products(seen.x), np.ones(len(seen.x))
    for _ in range(2):  # with the weights of cases that the first fit's residuals give
        found = bounded_ridge(wide, seen.y, case_weights, bounds, centre)
        fitted = found[0] + wide @ found[1:]
        sd = noise_free_sd(seen.y - fitted, seen.noise, PRIOR_SD)
        case_weights = sd**2 / (sd**2 + seen.noise**2)
    return found[0] + _with_products(x) @ found[1:], np.full(len(x), _sd_of(seen, fitted))


_BOUNDS = tuple(BOUNDS.items())


def _with_products(x: Matrix) -> Matrix:
    names = list(BOUNDS)
    products = [x[:, names.index(a)] * x[:, names.index(b)] for a, b in PRODUCTS]
    return np.column_stack([x, *products])


def _sd_of(seen: Seen, fitted: Matrix) -> float:
    return noise_free_sd(seen.y - fitted, seen.noise, PRIOR_SD)


class SameDataset(StationaryKernelMixin, NormalizedKernelMixin, Kernel):  # type: ignore[misc]
    """1 for two cases of one dataset, 0 otherwise; the dataset is the first column."""

    def __init__(self) -> None:
        """Do nothing; scikit-learn reads a kernel's hyperparameters from this signature."""

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Return the kernel matrix, and its gradient by no hyperparameters."""
        other = X if Y is None else Y
        same = (np.abs(X[:, :1] - other[:, :1].T) < ID_SCALE / 2).astype(float)
        return (same, np.empty((*same.shape, 0))) if eval_gradient else same


def _dataset_lines() -> Any:
    """Return the kernel of lines with a random term per dataset."""
    line = ConstantKernel(1 / RIDGE, (1e-3, 1.0)) * DotProduct(1.0, "fixed")
    by_dataset = ConstantKernel(0.1, (1e-3, 3.0)) * SameDataset()
    return line + by_dataset + WhiteKernel(0.05, (1e-3, 3.0))


def hierarchical(seen: Seen, x: Matrix) -> Predicted:
    """Predict by Bayesian lines with a random term per dataset."""
    return _gaussian_process(seen, x, _dataset_lines())


def gp(seen: Seen, x: Matrix) -> Predicted:
    """Predict by the hierarchical lines and a smooth function of all evidence."""
    smooth = ConstantKernel(0.1, (1e-3, 3.0)) * RBF(3.0, (0.5, 30.0))
    return _gaussian_process(seen, x, _dataset_lines() + smooth)


def _gaussian_process(seen: Seen, x: Matrix, kernel: Any) -> Predicted:
    """Fit to what the rule of thumb leaves; predict a dataset that was not seen."""
    weights = prior_weights_of(seen.strategy, seen.prior)
    rule = np.array([weights.get(n, 0.0) for n in BOUNDS])
    mean = float(np.average(seen.y - seen.x @ rule, weights=1 / (PRIOR_SD**2 + seen.noise**2)))
    model = GaussianProcessRegressor(kernel, alpha=seen.noise**2, random_state=0)
    with warnings.catch_warnings():
        # A variance at its lower bound is a finding: the data show none.
        warnings.filterwarnings("ignore", "The optimal value found", ConvergenceWarning)
        model.fit(
            np.column_stack([ID_SCALE * seen.dataset, seen.x]), seen.y - seen.x @ rule - mean
        )
    unseen = np.full(len(x), -ID_SCALE)
    found, sd = model.predict(np.column_stack([unseen, x]), return_std=True)
    return found + mean + x @ rule, sd


MODELS: dict[str, Model] = {
    "lines": lines,
    "squared": squared,
    "interactions": interactions,
    "hierarchical": hierarchical,
    "gp": gp,
}


class LeftOut(NamedTuple):
    """Cases of a strategy with what a model predicted for them when their dataset was left out."""

    strategy: str
    gains: Sequence[ObservedGain]
    mean: Matrix
    sd: Matrix


def leave_out(rows: list[Row], inputs: Inputs, strategy: str, model: Model) -> LeftOut | None:
    """Predict the gains of every dataset from the others; None with too few cases."""
    datasets = sorted({case.dataset for case in inputs})
    mean = sd = np.zeros(0)
    gains: list[ObservedGain] = []
    for number, name in enumerate(datasets):
        others = [r for r in rows if r["set"] != name]
        known = {case_of(r) for r in others}
        prior = prior_of_rows(others, {case: i for case, i in inputs.items() if case in known})
        every = gains_of(rows, strategy, inputs, prior)
        if len(every) < MIN_CASES:
            return None
        ids = np.array([datasets.index(g.case.dataset) for g in every])
        x = evidence_matrix(every, inputs, prior)
        y, noise = (np.array([getattr(g, key) for g in every]) for key in ("gain", "noise"))
        seen = Seen(every, x, y, noise, ids, prior, strategy)
        out = ids == number
        if out.any():
            found = model(seen.part(~out), x[out])
            mean, sd = np.append(mean, found[0]), np.append(sd, found[1])
            gains += seen.part(out).gains
    return LeftOut(strategy, gains, mean, sd)


def interval_scores(found: Sequence[LeftOut], inputs: Inputs) -> list[tuple[str, float, float]]:
    """Return dataset, error and interval score of every prediction, in points.

    Widths are calibrated on the other datasets, separately for every kind of strategies.
    """
    scored = []
    for kind in SPREAD_KINDS:
        group = [f for f in found if spread_kind(get_strategy(f.strategy)) == kind]
        cases = np.concatenate([_cases(f, inputs) for f in group])
        names = np.array([g.case.dataset for f in group for g in f.gains])
        for name in np.unique(names):
            spread = spread_of(cases[names != name])
            scored += [(name, *_score(case, spread)) for case in cases[names == name]]
    return scored


def _cases(found: LeftOut, inputs: Inputs) -> Matrix:
    return np.array(
        [
            (
                g.expected.mean + g.gain,
                g.expected.mean + mean,
                sd,
                inputs[g.case].profile.n_measured,
                g.n_test,
            )
            for g, mean, sd in zip(found.gains, found.mean, found.sd, strict=True)
        ]
    )


def _score(case: Matrix, spread: Spread) -> tuple[float, float]:
    """Return predicted minus reached accuracy, and the interval score, in points.

    References
    ----------
    T. Gneiting, A. Raftery, Strictly proper scoring rules, prediction, and estimation, 2007.
    """
    reached, centre, sd, n, n_test = case
    variances = (spread.model * sd) ** 2 + (spread.measured * 0.5) ** 2 / n + 0.25 / n_test
    half = Z * np.sqrt(variances)
    low, high = (float(accuracy_of(angle_of(expit(centre)) + s)) for s in (-half, half))
    accuracy = float(expit(reached))
    outside = max(low - accuracy, accuracy - high, 0.0)
    return 100 * (expit(centre) - accuracy), 100 * (high - low + 2 / (1 - LEVEL) * outside)


def regrets(found: Sequence[LeftOut], cases: Cases) -> dict[Case, float]:
    """Return the regret of the entry of the highest predicted accuracy, in points, by case."""
    predicted: dict[tuple[str, Case, int], float] = {}
    for f in found:
        for g, mean in zip(f.gains, f.mean, strict=True):
            predicted[f.strategy, g.case, g.input_px] = g.expected.mean + mean
    lost = {}
    for case in cases:
        expected = expected_accuracies(case, cases)
        known = {
            entry: predicted[entry[0], case, entry[2]]
            for entry in expected
            if entry[1] == DEFAULT and (entry[0], case, entry[2]) in predicted
        }
        best = max(known, key=lambda entry: known[entry])
        lost[case] = 100 * (max(expected.values()) - expected[best])
    return lost


def report(scores: Mapping[str, list[tuple[str, float, float]]], lost: Any) -> str:
    """Return the table of the models."""
    kinds = sorted({kind_of(case) for case in lost["lines"]})
    titles = ["model", "mean error", "root mean square error", "interval score", "minus lines"]
    titles += [f"regret, {backbone}, {px} px" for backbone, px in kinds]
    table = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    base = np.array([score for _, _, score in scores["lines"]])
    for name, scored in scores.items():
        datasets = [row[0] for row in scored]
        errors, own = (np.array([row[i] for row in scored]) for i in (1, 2))
        low, mid, high = bootstrap((own - base).tolist(), datasets, np.mean)
        cells = [name, f"{errors.mean():+.1f}", f"{np.sqrt(np.mean(errors**2)):.1f}"]
        cells += [f"{own.mean():.1f}", f"{mid:+.1f} [{low:+.1f}, {high:+.1f}]"]
        for kind in kinds:
            own_lost = {case: v for case, v in lost[name].items() if kind_of(case) == kind}
            names = [case.dataset for case in own_lost]
            low, mid, high = bootstrap(list(own_lost.values()), names, np.mean)
            cells.append(f"{mid:.2f} [{low:.2f}, {high:.2f}]")
        table.append("| " + " | ".join(cells) + " |")
    return "\n".join(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    args = parser.parse_args(argv)
    inputs = read_inputs(args.evidence)
    rows = [r for r in read_rows(args.results) if not r["grid"] and case_of(r) in inputs]
    cases = complete_cases(rows, inputs)
    strategies = sorted({r["strategy"] for r in rows})
    scores, lost = {}, {}
    for name in dict.fromkeys(["lines", *args.models]):
        every = (leave_out(rows, inputs, strategy, MODELS[name]) for strategy in strategies)
        found = [f for f in every if f is not None]
        scores[name], lost[name] = interval_scores(found, inputs), regrets(found, cases)
        print(name, flush=True)
    print(report(scores, lost))


if __name__ == "__main__":
    main()
