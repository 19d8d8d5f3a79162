"""Fit advisor/decide/fitted/ to the suite's rows; rebuilds the shipped files byte for byte.

For every strategy: a linear model of the gain of its defaults, in log-odds of test accuracy, over
what cross-validation says of a linear probe, from the evidence (`advisor.decide.gain_model`)
measured before the fit. The model is a ridge regression, because cases are few. Bounds on its
weights encode prior knowledge: a domain farther away, a poorer probe, more images, and middle
depths better than late ones never lower the predicted gain of training. Noisy evidence, and cases
with few test images, are weighted by their reliability. The standard deviation is that of left-out
datasets without the noise of probe and test split, which are known. The width of the intervals is
fitted to the same errors, so that 90% of the accuracies of another dataset can be expected inside.

Run:      python benchmarks/fit_priors.py
Cost:     a minute on one core.
Expected: no change of advisor/decide/fitted/, unless rows were added.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gain_regression import (
    BOUNDS,
    PRIOR_CASES,
    PRIOR_SD,
    PROBE,
    EvidencePriors,
    Inputs,
    Matrix,
    ObservedGain,
    apply_model,
    drift_of,
    evidence_matrix,
    fit_model,
    gains_of,
    left_out_gains,
    noise_free_sd,
    prior_of_evidence,
)
from rows import EVIDENCE, RESULTS, Row, case_of, read_inputs, read_rows
from scipy.special import expit

from advisor.decide.cost import raw_seconds
from advisor.decide.gain_model import Z, accuracy_of, angle_of
from advisor.decide.priors import SPREAD_KINDS, Prior, Spread, spread_kind
from strategies.core.metrics import LEVEL
from strategies.registry import get_strategy

PRIORS = Path(__file__).resolve().parent.parent / "advisor" / "decide" / "fitted"
MIN_CASES = 4
"""A strategy with fewer cases has no model."""
COST_PRIOR_SD = 0.25
"""Prior standard deviation of the logarithm of seconds; counts as `PRIOR_CASES` cases."""
COVERAGE = 0.92
"""Share of the accuracies on left-out datasets that the 90% intervals contain. 0.9 would do if the
next dataset were like these. With 0.9 the intervals of datasets that are left out of the spread as
well held in 87% with 5 images per class, with 0.92 in 89% (benchmarks/intervals.py)."""
MIN_FACTOR = 0.1
"""Lowest factor of the probe's standard error in an interval."""
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Ratios of the two parts of a spread (`Spread.model` to `Spread.measured`) that are tried."""


class _Fitted(NamedTuple):
    """Gains of a strategy, those predicted by models of other datasets, and its model's record."""

    gains: list[ObservedGain]
    left_out: Matrix
    record: dict[str, Any]

    @property
    def residuals(self) -> Matrix:
        """Observed minus left-out predicted gains."""
        return np.array([g.gain for g in self.gains]) - self.left_out


def fit(rows: list[Row], inputs: Inputs) -> dict[str, Any]:
    """Return the contents of the fitted priors: of all strategies together, and of each."""
    rows = [r for r in rows if not r["grid"] and case_of(r) in inputs]
    used = {case: i for case, i in inputs.items() if case in {case_of(r) for r in rows}}
    prior = prior_of_rows(rows, used)
    fitted = {
        name: found
        for name in sorted({r["strategy"] for r in rows})
        if (found := _fit_strategy(rows, used, prior, name)) is not None
    }
    common = {
        "provenance": _provenance(rows),
        "evidence": {name: asdict(p) for name, p in prior.items()},
        "spreads": _spreads(fitted, used),
        "shared": _shared(fitted),
    }
    strategies = {
        name: {"gain": found.record, "cost": _cost(found.gains, used)}
        for name, found in fitted.items()
    }
    return {"common": common, "strategies": strategies}


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
        f"seeds {seeds}, {sides} px"
    )


def prior_of_rows(rows: list[Row], inputs: Inputs) -> EvidencePriors:
    """Return the priors of the models' evidence, and of the random-init control."""
    probes = [case_of(r) for r in rows if r["strategy"] == PROBE]
    fits = [
        (case, probe.input_px)
        for probe in probes
        for case in inputs
        if case.draw == probe.draw and case.input_px >= probe.input_px
    ]
    known = [e for i in inputs.values() if (e := i.profile.transfer_gain) is not None]
    values = np.array([e.mid for e in known])
    noise = np.array([(e.high - e.low) / (2 * Z) for e in known])
    mean = float(values.mean()) if known else 0.0
    sd = noise_free_sd(values, noise, float(values.std()) if known else 1.0)
    control = Prior(round(mean, 3), round(max(sd, 0.05), 3))
    return {**prior_of_evidence(inputs, fits), "control": control}


def _fit_strategy(
    rows: list[Row], inputs: Inputs, prior: EvidencePriors, strategy: str
) -> _Fitted | None:
    """Fit a strategy's linear model; None if it has too few cases."""
    gains = gains_of(rows, strategy, inputs, prior)
    if len(gains) < MIN_CASES:
        return None
    x = evidence_matrix(gains, inputs, prior)
    y, noise = np.array([g.gain for g in gains]), np.array([g.noise for g in gains])
    model = fit_model(gains, x, prior, strategy)
    residuals = y - apply_model(model, x)
    predicted = left_out_gains(gains, inputs, prior, strategy)
    left_out = y - predicted
    sd = round(noise_free_sd(left_out, noise, PRIOR_SD), 3)
    record = {
        "intercept": round(float(model.weights[0]), 3),
        "weights": {n: round(float(w), 3) for n, w in zip(BOUNDS, model.weights[1:], strict=True)},
        "sd": sd,
        "drift": drift_of(model, x, prior, sd),
        "fit_error": round(float(np.sqrt(np.mean(residuals**2))), 3),
        "left_out_error": round(float(np.sqrt(np.mean(left_out**2))), 3),
        "cases": len(y),
    }
    return _Fitted(gains, predicted, record)


def _spreads(fitted: Mapping[str, _Fitted], inputs: Inputs) -> dict[str, dict[str, float]]:
    """Return the spread of every kind of strategies (`advisor.decide.priors.SPREAD_KINDS`)."""
    found = {}
    for kind in SPREAD_KINDS:
        group = [f for n, f in fitted.items() if spread_kind(get_strategy(n)) == kind]
        found[kind] = asdict(_spread(group, inputs))
    return found


def _spread(fitted: Sequence[_Fitted], inputs: Inputs) -> Spread:
    """Return the spread of the cases of some strategies."""
    cases = [
        (
            g.expected.mean + g.gain,
            g.expected.mean + predicted,
            f.record["sd"],
            inputs[g.case].profile.n_measured,
            g.n_test,
        )
        for f in fitted
        for g, predicted in zip(f.gains, f.left_out, strict=True)
    ]
    return spread_of(np.array(cases)) if cases else Spread(1.0, 1.0)


def spread_of(cases: Matrix) -> Spread:
    """Return the spread of the least mean interval score whose intervals hold in `COVERAGE`.

    The error of the test split is known, and left out of the spread.

    Parameters
    ----------
    cases
        Log-odds of the reached and of the predicted accuracy, the standard deviation of the gain,
        and the numbers of images measured and of test images, (cases, 5).
    """
    reached, expected, gain_sd, n, n_test = cases.T
    angle, centre = angle_of(expit(reached)), angle_of(expit(expected))
    off, probe_sd, test_sd = np.abs(angle - centre), 0.5 / np.sqrt(n), 0.5 / np.sqrt(n_test)
    scored = []
    for ratio in RATIOS:
        unit = np.hypot(ratio * gain_sd, probe_sd)
        needed = np.sqrt(np.maximum((off / Z) ** 2 - test_sd**2, 0.0)) / unit
        factor = max(float(np.quantile(needed, COVERAGE)), MIN_FACTOR)
        half = Z * np.hypot(factor * unit, test_sd)
        low, high = accuracy_of(centre - half), accuracy_of(centre + half)
        outside = np.maximum(np.maximum(low - expit(reached), expit(reached) - high), 0.0)
        score = float(np.mean(high - low + 2 / (1 - LEVEL) * outside))
        scored.append((score, Spread(round(factor * ratio, 3), round(factor, 3))))
    return min(scored, key=lambda pair: pair[0])[1]


def _shared(fitted: Mapping[str, _Fitted]) -> float:
    """Return the mean correlation of two strategies' residuals on left-out datasets."""
    residuals = [
        {(g.case, g.input_px): r for g, r in zip(f.gains, f.residuals, strict=True)}
        for name, f in fitted.items()
        if name != PROBE
    ]
    found = []
    for one, other in combinations(residuals, 2):
        both = [(one[case], other[case]) for case in one.keys() & other.keys()]
        a, b = np.array(sorted(both)).reshape(-1, 2).T
        ridge = PRIOR_CASES * PRIOR_SD**2
        found.append(float(a @ b / np.sqrt((a @ a + ridge) * (b @ b + ridge))))
    return round(min(max(float(np.mean(found or [0.0])), 0.0), 1.0), 3)


def _cost(gains: Sequence[ObservedGain], inputs: Inputs) -> dict[str, Any]:
    """Compare the seconds of fits with those predicted from measured rates (medians of logs).

    The standard deviation is that of the normal distribution whose central 90% are as wide as
    those of the errors. A root mean square would follow a few fits that were ten times further
    off, because other jobs ran on their core.
    """
    gains = [g for g in gains if not np.isnan(g.seconds)]
    octaves = np.array([np.log2(g.case.input_px / g.input_px) for g in gains])
    errors = np.array([np.log(g.seconds / _raw_seconds(g, inputs)) for g in gains])
    is_own = octaves == 0
    offset = float(np.median(errors[is_own])) if is_own.any() else 0.0
    per_octave = (errors[~is_own] - offset) / octaves[~is_own]
    n_smaller = len(per_octave)
    slope = (
        float(np.median(per_octave)) * n_smaller / (n_smaller + PRIOR_CASES) if n_smaller else 0
    )
    off = np.abs(errors - offset - slope * octaves)
    left = float(np.quantile(off, LEVEL)) / Z if len(off) else 0.0
    total = len(errors) * left**2 + PRIOR_CASES * COST_PRIOR_SD**2
    return {
        "offset": round(offset, 3),
        "sd": round(float(np.sqrt(total / (len(errors) + PRIOR_CASES))), 3),
        "cases": len(errors),
        "per_octave": round(slope, 3),
    }


def _raw_seconds(g: ObservedGain, inputs: Inputs) -> float:
    known = inputs[g.case]
    return raw_seconds(known.candidate(g.strategy, g.input_px), known.profile)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the priors, write them and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--out", type=Path, default=PRIORS)
    args = parser.parse_args(argv)
    args.out.mkdir(exist_ok=True)
    for name, text in files_of(fit(read_rows(args.results), read_inputs(args.evidence))).items():
        (args.out / name).write_text(text)
        print(name, text)


def files_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the files of the priors, by name."""
    parts = {"common": record["common"], **record["strategies"]}
    return {f"{name}.json": json.dumps(part, indent=2) + "\n" for name, part in parts.items()}


if __name__ == "__main__":
    main()
