"""Fit advisor/decide/priors.json to the suite's rows; rebuilds the shipped file byte for byte.

For every strategy except the linear probe, and for every entry of the grid that beats its
strategy's default: a linear model of the gain in log-odds of test accuracy over the linear probe,
from the evidence (`advisor.decide.gain_model`) measured before the fit. The model is a ridge
regression, because cases are few. Bounds on its weights encode prior knowledge: a domain farther
away, a poorer probe, more images, and middle depths better than late ones never lower the
predicted gain of training. Noisy evidence, and cases with few test images, are weighted by their
reliability. The residual standard deviation is measured on left-out datasets.

Run:      python benchmarks/fit_priors.py
Cost:     seconds on one core.
Expected: no change of advisor/decide/priors.json, unless rows were added.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from gain_regression import (
    BOUNDS,
    PRIOR_CASES,
    PRIOR_SD,
    PROBE,
    RIDGE,
    SVM,
    EvidencePriors,
    Inputs,
    Matrix,
    apply_model,
    drift_of,
    evidence_matrix,
    fit_model,
    gain_by_case,
    gains_of,
    left_out_gains,
    log_odds_of,
    noise_free_sd,
    prior_weights_of,
    shrunk_sd,
)
from rows import EVIDENCE, RESULTS, Case, Row, case_of, read_inputs, read_rows
from scipy.optimize import lsq_linear

from advisor.decide.cost import raw_seconds
from advisor.decide.gain_model import (
    UNKNOWN,
    evidence_of,
    pilot_gain,
    reliability,
    shrunk_to_prior,
)
from advisor.decide.priors import Prior

PRIORS = Path(__file__).resolve().parent.parent / "advisor" / "decide" / "priors.json"
TRAINED = ("partial_fine_tune", "full_fine_tune", "from_scratch")
MIN_CASES = 4
"""A variant with fewer cases than this is not offered."""
MIN_LEAD = 2.0
"""Given hyperparameters are offered if they beat the default by this many standard errors."""
COST_PRIOR_SD = 0.25
"""Prior standard deviation of the logarithm of seconds; counts as `PRIOR_CASES` cases."""
PILOT_PRIOR = np.array([0.0, 0.5, 0.5])
"""Prior of the offset, the weight of the linear model and the weight of the pilot."""


def fit(rows: list[Row], inputs: Inputs) -> dict[str, Any]:
    """Return the contents of priors.json."""
    rows = [r for r in rows if case_of(r) in inputs]
    used = {case_of(r): inputs[case_of(r)] for r in rows}
    prior = _prior(used)
    variants = [
        variant
        for strategy, grid in _grid(rows, (SVM, *TRAINED))
        if _is_worth_offering(rows, used, prior, strategy, grid)
        and (variant := _variant(rows, used, prior, strategy, grid)) is not None
    ]
    known = {variant["strategy"] for variant in variants}
    variants += [_prior_variant(rows, name) for name in (SVM, *TRAINED) if name not in known]
    record: dict[str, Any] = {
        "provenance": _provenance(rows),
        "evidence": {name: asdict(u) for name, u in prior.items()},
        "variants": variants,
        "measured": _probe_offset(rows, used, prior),
        "shared": _shared(rows, used, prior),
        "cost": {name: _cost(rows, used, name) for name in (PROBE, SVM, *TRAINED)},
    }
    trusts = {name: _pilot(rows, used, prior, name) for name in sorted((SVM, *TRAINED))}
    record["pilot"] = {name: trust for name, trust in trusts.items() if trust is not None}
    return record


def _provenance(rows: list[Row]) -> str:
    datasets = sorted({r["set"] for r in rows})
    sizes, seeds, sides = (
        ", ".join(map(str, sorted({r[k] for r in rows})))
        for k in ("n_per_class", "seed", "input_px")
    )
    newest = max(r.get("date", "") for r in rows)
    return (
        f"benchmarks/fit_priors.py on {len(rows)} rows of benchmarks/results.jsonl to {newest}: "
        f"{len(datasets)} datasets ({', '.join(datasets)}), {sizes} images per class, "
        f"seeds {seeds}, "
        f"{sides} px"
    )


def _grid(rows: list[Row], strategies: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the grid entries of some strategies, sorted by name and given hyperparameters."""
    seen = {
        (r["strategy"], json.dumps(r["grid"], sort_keys=True)): r["grid"]
        for r in rows
        if r["strategy"] in strategies
    }
    return [(strategy, grid) for (strategy, _), grid in sorted(seen.items(), key=lambda i: i[0])]


def _prior(inputs: Inputs) -> EvidencePriors:
    """Return mean and standard deviation of every piece of evidence over the cases."""
    prior = {}
    for name in BOUNDS:
        seen = [evidence_of(i.profile)[name] for i in inputs.values()]
        known = [e for e in seen if e != UNKNOWN]
        values, noise = np.array([e.value for e in known]), np.array([e.noise for e in known])
        mean = float(values.mean()) if known else 0.0
        sd = noise_free_sd(values, noise, float(values.std()) if known else 1.0)
        prior[name] = Prior(round(mean, 3), round(max(sd, 0.05), 3))
    return prior


def _variant(
    rows: list[Row],
    inputs: Inputs,
    prior: EvidencePriors,
    strategy: str,
    grid: dict[str, Any],
) -> dict[str, Any] | None:
    """Return a variant's linear model and its errors, None if it has too few cases."""
    gains = gains_of(rows, strategy, grid)
    if len(gains) < MIN_CASES:
        return None
    x = evidence_matrix(gains, inputs, prior)
    y = np.array([g.gain for g in gains])
    prior_weights = prior_weights_of(strategy, prior)
    model = fit_model(gains, inputs, prior, prior_weights)
    residuals = y - apply_model(model, x)
    left_out = y - left_out_gains(gains, inputs, prior, prior_weights)
    return {
        "strategy": strategy,
        "hyperparameters": grid,
        "intercept": round(float(model.weights[0]), 3),
        "weights": {n: round(float(w), 3) for n, w in zip(BOUNDS, model.weights[1:], strict=True)},
        "sd": shrunk_sd(left_out),
        "drift": drift_of(model, x, prior, shrunk_sd(left_out)),
        "fit_error": round(float(np.sqrt(np.mean(residuals**2))), 3),
        "left_out_error": round(float(np.sqrt(np.mean(left_out**2))), 3),
        "cases": len(y),
    }


def _left_out_predictions(
    rows: list[Row],
    inputs: Inputs,
    prior: EvidencePriors,
    strategy: str,
    grid: Mapping[str, Any],
) -> dict[Case, float]:
    """Return the gain of every case as predicted by models fitted to the other datasets."""
    gains = gains_of(rows, strategy, grid)
    values = left_out_gains(gains, inputs, prior, prior_weights_of(strategy, prior))
    return {g.case: float(value) for g, value in zip(gains, values, strict=True)}


def _is_worth_offering(
    rows: list[Row],
    inputs: Inputs,
    prior: EvidencePriors,
    strategy: str,
    grid: Mapping[str, Any],
) -> bool:
    """Return whether given hyperparameters beat a strategy's evidence-based defaults.

    They are compared on the cases where left-out predictions favour the given hyperparameters. The
    mean lead over datasets must exceed `MIN_LEAD` standard errors.
    """
    gains, default = gain_by_case(rows, strategy, grid), gain_by_case(rows, strategy, {})
    if not grid or not default:
        return True
    predicted = _left_out_predictions(rows, inputs, prior, strategy, grid)
    by_default = _left_out_predictions(rows, inputs, prior, strategy, {})
    by_dataset: dict[str, list[float]] = defaultdict(list)
    for case, gain in gains.items():
        if case in by_default and predicted[case] > by_default[case]:
            by_dataset[case[0]].append(gain - default[case])
    leads = np.array([np.mean(of_dataset) for of_dataset in by_dataset.values()])
    if len(leads) < MIN_CASES:
        return False
    error = float(leads.std(ddof=1) / np.sqrt(len(leads)))
    return float(leads.mean()) > MIN_LEAD * error


def _shared(rows: list[Row], inputs: Inputs, prior: EvidencePriors) -> float:
    """Return the mean correlation of two strategies' residuals on left-out datasets."""
    residuals = {}
    for strategy in (SVM, *TRAINED):
        predicted = _left_out_predictions(rows, inputs, prior, strategy, {})
        residuals[strategy] = {
            case: gain - predicted[case] for case, gain in gain_by_case(rows, strategy, {}).items()
        }
    found = []
    for one, other in combinations(residuals.values(), 2):
        both = [(one[case], other[case]) for case in one.keys() & other.keys()]
        a, b = np.array(sorted(both)).reshape(-1, 2).T
        ridge = PRIOR_CASES * PRIOR_SD**2
        found.append(float(a @ b / np.sqrt((a @ a + ridge) * (b @ b + ridge))))
    return round(min(max(float(np.mean(found)), 0.0), 1.0), 3)


def _prior_variant(rows: list[Row], strategy: str) -> dict[str, Any]:
    """Return a variant without weights for a strategy with too few cases: about no gain."""
    grids = [grid for _, grid in _grid(rows, (strategy,))]
    gains = np.array([g.gain for grid in grids for g in gains_of(rows, strategy, grid)])
    prior_gain = -1.0 if strategy == "from_scratch" else 0.0
    mean = float((gains.sum() + PRIOR_CASES * prior_gain) / (len(gains) + PRIOR_CASES))
    error = round(float(np.sqrt(np.mean((gains - mean) ** 2))), 3) if len(gains) else 0.0
    return {
        "strategy": strategy,
        "hyperparameters": grids[0] if grids else {},
        "intercept": round(mean, 3),
        "weights": dict.fromkeys(BOUNDS, 0.0),
        "sd": round(float(np.hypot(shrunk_sd(gains - mean), PRIOR_SD)), 3),
        "drift": PRIOR_SD,
        "fit_error": error,
        "left_out_error": error,
        "cases": len(gains),
    }


def _probe_offset(rows: list[Row], inputs: Inputs, prior: EvidencePriors) -> dict[str, Any]:
    """Compare the linear probe's test accuracy with the predicted one.

    Return the mean difference in log-odds, and its standard deviation beyond that of sampling.
    """
    gaps, sampling = [], []
    for row in rows:
        if row["strategy"] == PROBE and not row["grid"]:
            profile = inputs[case_of(row)].profile
            accuracy = profile.linear_probe.accuracy.mid
            odds = shrunk_to_prior(accuracy, profile.n_measured, prior["probe"])
            gaps.append(log_odds_of(row) - odds.mean)
            sampling.append(odds.sd**2)
    if not gaps:
        return {"offset": 0.0, "sd": PRIOR_SD / 2, "cases": 0}
    offset = float(np.sum(gaps) / (len(gaps) + PRIOR_CASES))
    extra = float(np.sum((np.array(gaps) - offset) ** 2) - np.sum(sampling))
    extra += PRIOR_CASES * (PRIOR_SD / 2) ** 2
    sd = np.sqrt(max(extra / (len(gaps) + PRIOR_CASES), 0.01))
    return {
        "offset": round(float(np.mean(gaps)), 3),
        "sd": round(float(sd), 3),
        "cases": len(gaps),
    }


def _cost(rows: list[Row], inputs: Inputs, strategy: str) -> dict[str, Any]:
    """Compare the seconds of fits with those predicted from measured rates (median of logs)."""

    def predicted_s(case: Case) -> float:
        return raw_seconds(inputs[case].candidate(strategy), inputs[case].profile)

    errors = [
        float(np.log(row["seconds"] / predicted_s(case_of(row))))
        for row in rows
        if row["strategy"] == strategy and not row["grid"]
    ]
    offset = float(np.median(errors)) if errors else 0.0
    total = float(np.sum((np.array(errors) - offset) ** 2)) + PRIOR_CASES * COST_PRIOR_SD**2
    sd = float(np.sqrt(total / (len(errors) + PRIOR_CASES)))
    return {"offset": round(offset, 3), "sd": round(sd, 3), "cases": len(errors)}


def _pilot(
    rows: list[Row], inputs: Inputs, prior: EvidencePriors, strategy: str
) -> dict[str, Any] | None:
    """Regress a strategy's gain on its model's left-out prediction and on the gain of the pilot.

    The weights are shrunk to `PILOT_PRIOR` as by `RIDGE` pilots without noise. None if pilots did
    not improve the prediction on left-out datasets.
    """
    gains = gain_by_case(rows, strategy, {})
    predicted = _left_out_predictions(rows, inputs, prior, strategy, {})
    pilots = {c: pilot for c in gains if (pilot := inputs[c].pilot) is not None}
    measured = {c: pilot_gain(pilot, strategy) for c, pilot in pilots.items()}
    cases = [(c, y) for c, y in gains.items() if c in measured]
    noise = np.array([sd for _, sd in measured.values()])
    gained = np.array([gain for gain, _ in measured.values()])
    spread = noise_free_sd(gained, noise, PRIOR_SD)
    weight = np.array([reliability(sd, spread) for sd in noise])
    x = np.array([[1.0, predicted[c], measured[c][0]] for c, _ in cases]).reshape(-1, 3)
    y = np.array([gain for _, gain in cases])
    datasets = np.array([c[0] for c, _ in cases])
    residuals = np.empty_like(y)
    for name in np.unique(datasets):
        out = datasets == name
        residuals[out] = y[out] - x[out] @ _pilot_weights(x[~out], y[~out], weight[~out])
    if len(y) and weight @ residuals**2 >= weight @ (y - x[:, 1]) ** 2:
        return None
    total = float(weight @ residuals**2) + PRIOR_CASES * PRIOR_SD**2
    sd = float(np.sqrt(total / (weight.sum() + PRIOR_CASES)))
    found = dict(zip(("offset", "line", "pilot"), _pilot_weights(x, y, weight), strict=True))
    found |= {"sd": sd, "spread": spread}
    return {name: round(float(value), 3) for name, value in found.items()} | {"cases": len(y)}


def _pilot_weights(x: Matrix, y: Matrix, weight: Matrix) -> Matrix:
    root = np.sqrt(weight)
    penalty = np.sqrt(RIDGE) * np.eye(3)
    found = lsq_linear(
        np.vstack([x * root[:, None], penalty]),
        np.concatenate([y * root, penalty @ PILOT_PRIOR]),
        ([-np.inf, 0.0, 0.0], np.inf),
        method="bvls",
    )
    solution: Matrix = found.x
    return solution


def text_of(rows: list[Row], inputs: Inputs) -> str:
    """Return the text of priors.json."""
    return json.dumps(fit(rows, inputs), indent=2) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the priors, write them and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--out", type=Path, default=PRIORS)
    args = parser.parse_args(argv)
    args.out.write_text(text_of(read_rows(args.results), read_inputs(args.evidence)))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
