"""Rebuild advisor/decide/priors.json from the suite's rows, byte for byte.

    python benchmarks/fit_priors.py

For every strategy but the linear probe, and every entry of the grid that beats its default: the
log-odds of test accuracy minus those of the linear probe, as a straight line over the evidence
(`advisor.decide.gain_model`) that stood before the fit. The line is a ridge regression, because
cases are few, and is bound to common sense: a domain farther away, a poorer probe, more
images, and middle depths that are better than late ones never speak against training. Noisy
evidence, and cases with few test images, count as far as they are exact. What the line leaves
open is judged on the datasets that it was not fitted to.
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
from gain_lines import (
    PROBE,
    RIDGE,
    SD_CASES,
    SD_GUESS,
    SIGNS,
    SVM,
    Matrix,
    Profiles,
    Spreads,
    apply_line,
    drift_of,
    evidence_matrix,
    exact_spread,
    fit_line,
    gained_by_case,
    gains_of,
    guess_of,
    log_odds_of,
    spread_of,
    unseen_gains,
)
from rows import EVIDENCE, RESULTS, Case, Row, case_of, read_profiles, read_rows
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
FEWEST = 4
"""A variant with fewer cases than this is not offered."""
CLEAR = 2.0
"""Hyperparameters are offered beside the default where they lead by so many standard errors."""
COST_SD_GUESS = 0.25
"""Spread of the logarithms of seconds, as if `SD_CASES` cases had shown it."""
PILOT_GUESS = np.array([0.0, 0.5, 0.5])
"""Offset, weight of the line and weight of the pilot, before any pilot was seen."""


def fit(rows: list[Row], profiles: Profiles) -> dict[str, Any]:
    """Return the contents of priors.json."""
    rows = [r for r in rows if case_of(r) in profiles]
    used = {case_of(r): profiles[case_of(r)] for r in rows}
    prior = _prior(used)
    variants = [
        variant
        for strategy, grid in _grid(rows, (SVM, *TRAINED))
        if _is_worth_offering(rows, used, prior, strategy, grid)
        and (variant := _variant(rows, used, prior, strategy, grid)) is not None
    ]
    known = {variant["strategy"] for variant in variants}
    variants += [_unsure(rows, name) for name in (SVM, *TRAINED) if name not in known]
    record: dict[str, Any] = {
        "provenance": _provenance(rows),
        "evidence": {name: asdict(u) for name, u in prior.items()},
        "variants": variants,
        "measured": _measured(rows, used, prior),
        "shared": _shared(rows, used, prior),
        "cost": {name: _cost(rows, used, name) for name in (PROBE, SVM, *TRAINED)},
    }
    trusts = {name: _pilot(rows, used, prior, name) for name in sorted((SVM, *TRAINED))}
    record["pilot"] = {name: trust for name, trust in trusts.items() if trust is not None}
    return record


def _provenance(rows: list[Row]) -> str:
    sets = sorted({r["set"] for r in rows})
    sizes, seeds, sides = (
        ", ".join(map(str, sorted({r[k] for r in rows})))
        for k in ("n_per_class", "seed", "input_px")
    )
    newest = max(r.get("date", "") for r in rows)
    return (
        f"benchmarks/fit_priors.py on {len(rows)} rows of benchmarks/results.jsonl to {newest}: "
        f"{len(sets)} sets ({', '.join(sets)}), {sizes} per class, seeds {seeds}, {sides} px"
    )


def _grid(rows: list[Row], strategies: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """List some strategies with what was given to them, by name and grid entry."""
    seen = {
        (r["strategy"], json.dumps(r["grid"], sort_keys=True)): r["grid"]
        for r in rows
        if r["strategy"] in strategies
    }
    return [(strategy, grid) for (strategy, _), grid in sorted(seen.items(), key=lambda i: i[0])]


def _prior(profiles: Profiles) -> Spreads:
    """Return mean and spread of every piece of evidence over the cases."""
    prior = {}
    for name in SIGNS:
        seen = [evidence_of(p)[name] for p in profiles.values()]
        known = [e for e in seen if e != UNKNOWN]
        values, noise = np.array([e.value for e in known]), np.array([e.noise for e in known])
        mean = float(values.mean()) if known else 0.0
        sd = exact_spread(values, noise, float(values.std()) if known else 1.0)
        prior[name] = Prior(round(mean, 3), round(max(sd, 0.05), 3))
    return prior


def _variant(
    rows: list[Row],
    profiles: Profiles,
    prior: Spreads,
    strategy: str,
    grid: dict[str, Any],
) -> dict[str, Any] | None:
    gains = gains_of(rows, strategy, grid)
    if len(gains) < FEWEST:
        return None
    x = evidence_matrix(gains, profiles, prior)
    y = np.array([g.gain for g in gains])
    guess = guess_of(strategy, prior)
    whole = fit_line(gains, profiles, prior, guess)
    missed = y - apply_line(whole, x)
    unseen = y - unseen_gains(gains, profiles, prior, guess)
    return {
        "strategy": strategy,
        "hyperparameters": grid,
        "intercept": round(float(whole.weights[0]), 3),
        "weights": {n: round(float(w), 3) for n, w in zip(SIGNS, whole.weights[1:], strict=True)},
        "sd": spread_of(unseen),
        "drift": drift_of(whole, x, prior, spread_of(unseen)),
        "fit_error": round(float(np.sqrt(np.mean(missed**2))), 3),
        "left_out_error": round(float(np.sqrt(np.mean(unseen**2))), 3),
        "cases": len(y),
    }


def _foretold(
    rows: list[Row],
    profiles: Profiles,
    prior: Spreads,
    strategy: str,
    grid: Mapping[str, Any],
) -> dict[Case, float]:
    """Return the gain that lines fitted to the other datasets foretell of every case."""
    gains = gains_of(rows, strategy, grid)
    values = unseen_gains(gains, profiles, prior, guess_of(strategy, prior))
    return {g.case: float(value) for g, value in zip(gains, values, strict=True)}


def _is_worth_offering(
    rows: list[Row],
    profiles: Profiles,
    prior: Spreads,
    strategy: str,
    grid: Mapping[str, Any],
) -> bool:
    """Whether given hyperparameters beat a strategy's default, which follows the evidence.

    Clearly so, over datasets that the lines were not fitted to, on the cases where they promise
    more than the default.
    """
    gains, default = gained_by_case(rows, strategy, grid), gained_by_case(rows, strategy, {})
    if not grid or not default:
        return True
    promised = _foretold(rows, profiles, prior, strategy, grid)
    usually = _foretold(rows, profiles, prior, strategy, {})
    led: dict[str, list[float]] = defaultdict(list)
    for case, gain in gains.items():
        if case in usually and promised[case] > usually[case]:
            led[case[0]].append(gain - default[case])
    leads = np.array([np.mean(of_set) for of_set in led.values()])
    if len(leads) < FEWEST:
        return False
    error = float(leads.std(ddof=1) / np.sqrt(len(leads)))
    return float(leads.mean()) > CLEAR * error


def _shared(rows: list[Row], profiles: Profiles, prior: Spreads) -> float:
    """Return the mean correlation of what two strategies' lines miss on datasets unseen."""
    missed = {}
    for strategy in (SVM, *TRAINED):
        foretold = _foretold(rows, profiles, prior, strategy, {})
        missed[strategy] = {
            case: gain - foretold[case]
            for case, gain in gained_by_case(rows, strategy, {}).items()
        }
    found = []
    for one, other in combinations(missed.values(), 2):
        both = [(one[case], other[case]) for case in one.keys() & other.keys()]
        a, b = np.array(sorted(both)).reshape(-1, 2).T
        ridge = SD_CASES * SD_GUESS**2
        found.append(float(a @ b / np.sqrt((a @ a + ridge) * (b @ b + ridge))))
    return round(min(max(float(np.mean(found)), 0.0), 1.0), 3)


def _unsure(rows: list[Row], strategy: str) -> dict[str, Any]:
    """Return what is believed of a strategy that was hardly tried: about no gain."""
    grids = [grid for _, grid in _grid(rows, (strategy,))]
    gains = np.array([g.gain for grid in grids for g in gains_of(rows, strategy, grid)])
    guess = -1.0 if strategy == "from_scratch" else 0.0
    middle = float((gains.sum() + SD_CASES * guess) / (len(gains) + SD_CASES))
    error = round(float(np.sqrt(np.mean((gains - middle) ** 2))), 3) if len(gains) else 0.0
    return {
        "strategy": strategy,
        "hyperparameters": grids[0] if grids else {},
        "intercept": round(middle, 3),
        "weights": dict.fromkeys(SIGNS, 0.0),
        "sd": round(float(np.hypot(spread_of(gains - middle), SD_GUESS)), 3),
        "drift": SD_GUESS,
        "fit_error": error,
        "left_out_error": error,
        "cases": len(gains),
    }


def _measured(rows: list[Row], profiles: Profiles, prior: Spreads) -> dict[str, Any]:
    """Compare the linear probe's test with what is expected of it: the spread beyond that."""
    gaps, sampling = [], []
    for row in rows:
        if row["strategy"] == PROBE and not row["grid"]:
            profile = profiles[case_of(row)]
            said = profile.linear_probe.accuracy.mid
            odds = shrunk_to_prior(said, profile.n_measured, prior["probe"])
            gaps.append(log_odds_of(row) - odds.mean)
            sampling.append(odds.sd**2)
    if not gaps:
        return {"offset": 0.0, "sd": SD_GUESS / 2, "cases": 0}
    offset = float(np.sum(gaps) / (len(gaps) + SD_CASES))
    extra = float(np.sum((np.array(gaps) - offset) ** 2) - np.sum(sampling))
    extra += SD_CASES * (SD_GUESS / 2) ** 2
    sd = np.sqrt(max(extra / (len(gaps) + SD_CASES), 0.01))
    return {
        "offset": round(float(np.mean(gaps)), 3),
        "sd": round(float(sd), 3),
        "cases": len(gaps),
    }


def _cost(rows: list[Row], profiles: Profiles, strategy: str) -> dict[str, Any]:
    """Compare seconds with what measured rates foretold, by the typical case."""
    misses = [
        float(np.log(row["seconds"] / raw_seconds(strategy, profiles[case_of(row)])))
        for row in rows
        if row["strategy"] == strategy and not row["grid"]
    ]
    offset = float(np.median(misses)) if misses else 0.0
    total = float(np.sum((np.array(misses) - offset) ** 2)) + SD_CASES * COST_SD_GUESS**2
    sd = float(np.sqrt(total / (len(misses) + SD_CASES)))
    return {"offset": round(offset, 3), "sd": round(sd, 3), "cases": len(misses)}


def _pilot(
    rows: list[Row], profiles: Profiles, prior: Spreads, strategy: str
) -> dict[str, Any] | None:
    """Fit what a strategy gained to what its line foretold unseen and to what the pilot gained.

    The weights lean on a guess, half of each, as by `RIDGE` exact pilots. None where pilots
    did not bring what is foretold of unseen datasets nearer to the truth.
    """
    gains = gained_by_case(rows, strategy, {})
    foretold = _foretold(rows, profiles, prior, strategy, {})
    pilots = {c: pilot for c in gains if (pilot := profiles[c].pilot) is not None}
    seen = {c: pilot_gain(pilot, strategy) for c, pilot in pilots.items()}
    cases = [(c, y) for c, y in gains.items() if c in seen]
    noise = np.array([sd for _, sd in seen.values()])
    gained = np.array([gain for gain, _ in seen.values()])
    spread = exact_spread(gained, noise, SD_GUESS)
    exact = np.array([reliability(sd, spread) for sd in noise])
    x = np.array([[1.0, foretold[c], seen[c][0]] for c, _ in cases]).reshape(-1, 3)
    y = np.array([gain for _, gain in cases])
    sets = np.array([c[0] for c, _ in cases])
    missed = np.empty_like(y)
    for name in np.unique(sets):
        out = sets == name
        missed[out] = y[out] - x[out] @ _pilot_line(x[~out], y[~out], exact[~out])
    if len(y) and exact @ missed**2 >= exact @ (y - x[:, 1]) ** 2:
        return None
    total = float(exact @ missed**2) + SD_CASES * SD_GUESS**2
    sd = float(np.sqrt(total / (exact.sum() + SD_CASES)))
    found = dict(zip(("offset", "line", "pilot"), _pilot_line(x, y, exact), strict=True))
    found |= {"sd": sd, "spread": spread}
    return {name: round(float(value), 3) for name, value in found.items()} | {"cases": len(y)}


def _pilot_line(x: Matrix, y: Matrix, exact: Matrix) -> Matrix:
    weight = np.sqrt(exact)
    drawn = np.sqrt(RIDGE) * np.eye(3)
    found = lsq_linear(
        np.vstack([x * weight[:, None], drawn]),
        np.concatenate([y * weight, drawn @ PILOT_GUESS]),
        ([-np.inf, 0.0, 0.0], np.inf),
        method="bvls",
    )
    solution: Matrix = found.x
    return solution


def text_of(rows: list[Row], profiles: Profiles) -> str:
    """Return priors.json as text."""
    return json.dumps(fit(rows, profiles), indent=2) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the priors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--out", type=Path, default=PRIORS)
    args = parser.parse_args(argv)
    args.out.write_text(text_of(read_rows(args.results), read_profiles(args.evidence)))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
