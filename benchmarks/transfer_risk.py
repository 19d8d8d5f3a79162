"""Evaluate the predicted probability of negative transfer on datasets left out of the priors.

A case (dataset, size, seed) and a strategy show negative transfer where the 90% interval of the
strategy's test accuracy minus that of ``from_scratch`` is below 0, and positive transfer where it
is above 0. Where it contains 0 the case is left out of the ROC curve, but counts by its sign in
the calibration table. Probabilities are predicted with priors fitted without the dataset under
test. Only rows with default hyperparameters count, and only cases with both rows. The area under
the ROC curve has a 90% bootstrap interval over datasets.

Run:      python benchmarks/transfer_risk.py --plot FILE.svg [--cases]
Cost:     minutes on one core; reads rows only.
Expected: an area of about 0.92, and calibrated probabilities
          (docs/benchmarks/negative-transfer.md).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from fit_priors import fit
from rows import EVIDENCE, RESULTS, Case, Row, case_of, read_inputs, read_rows
from sklearn.metrics import roc_auc_score
from vl_convert import vegalite_to_svg

from advisor.decide.candidates import DecisionInputs
from advisor.decide.gain_model import Z
from advisor.decide.negative_transfer import probability_scratch_wins, transfer_risks
from advisor.decide.priors import priors_from_record
from advisor.findings.transfer import RISKY
from strategies.core.metrics import proportion

SCRATCH = "from_scratch"
DRAWS = 500
MAX_FALSE_ALARMS = 0.04
"""Largest share of cases of positive transfer that a threshold may warn of; the bar is 5%, and a
threshold that was chosen on some datasets warns of a few more on others."""
BINS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Prediction:
    """Predicted and measured transfer gain of a strategy on a case.

    Attributes
    ----------
    probability
        Predicted probability that training from scratch does better.
    gain
        Measured test accuracy minus that of ``from_scratch``.
    low, high
        The predicted 90% interval of the gain.
    noise
        Half of the 90% interval of the measured gain, as if the two test samples were independent:
        conservative, because the test images are the same.
    """

    case: Case
    strategy: str
    probability: float
    gain: float
    low: float
    high: float
    noise: float

    @property
    def negative(self) -> bool:
        """Return whether training from scratch did better."""
        return self.gain < 0

    @property
    def significant(self) -> bool:
        """Return whether the 90% interval of the measured gain excludes 0."""
        return abs(self.gain) > self.noise


def predict_larger_sizes(
    rows: list[Row], inputs: Mapping[Case, DecisionInputs]
) -> list[tuple[float, bool]]:
    """Predict from the evidence of few images whether scratch wins with more images.

    Priors are fitted without the dataset.

    Returns
    -------
    list
        Pairs of the predicted probability, and whether training from scratch won: whether the mean
        gain over the seeds of the larger size was below 0.
    """
    rows = [r for r in rows if case_of(r) in inputs and not r["grid"]]
    accuracy = {(case_of(r), r["strategy"]): r["accuracy"] for r in rows}
    found: list[tuple[float, bool]] = []
    for name in sorted({c[0] for c in inputs}):
        priors = priors_from_record(fit([r for r in rows if r["set"] != name], inputs))
        own = [(c, i) for c, i in inputs.items() if c.dataset == name]
        for size in sorted({c[1] for c, _ in own}):
            larger = [c for c, _ in own if c[1] == size]
            for case, known in ((c, i) for c, i in own if c.n_per_class < size):
                for risk in transfer_risks(known, priors):
                    gains = [
                        accuracy[c, risk.strategy] - accuracy[c, SCRATCH]
                        for c in larger
                        if {(c, risk.strategy), (c, SCRATCH)} <= accuracy.keys()
                    ]
                    if gains:
                        factor = size / case.n_per_class
                        probability = probability_scratch_wins(
                            factor, risk.strategy, known, priors
                        )
                        found.append((probability, bool(np.mean(gains) < 0)))
    return found


def larger_sizes_table(found: list[tuple[float, bool]]) -> str:
    """Return how often scratch won with more images, by predicted probability, as Markdown."""
    probabilities, won = (np.array(v) for v in zip(*found, strict=True))
    lines = ["| predicted for more images | predictions | mean predicted | from scratch won |"]
    lines.append("|---|---|---|---|")
    for start, end in pairwise(BINS):
        mine = (probabilities >= start) & ((probabilities < end) | (end == 1))
        if mine.any():
            span = f"{100 * start:.0f} to {100 * end:.0f}%"
            mean, true = 100 * probabilities[mine].mean(), 100 * won[mine].mean()
            lines.append(f"| {span} | {mine.sum()} | {mean:.0f}% | {true:.0f}% |")
    return "\n".join(lines)


def predict(rows: list[Row], inputs: Mapping[Case, DecisionInputs]) -> list[Prediction]:
    """Predict every case with priors fitted without its dataset."""
    rows = [r for r in rows if case_of(r) in inputs]
    accuracy = {(case_of(r), r["strategy"]): r["accuracy"] for r in rows if not r["grid"]}
    n_test = {case_of(r): r["n_test"] for r in rows}
    predictions = []
    for name in sorted({case.dataset for case, strategy in accuracy if strategy == SCRATCH}):
        priors = priors_from_record(fit([r for r in rows if r["set"] != name], inputs))
        of_set = (c for c, strategy in accuracy if strategy == SCRATCH and c.dataset == name)
        for case in sorted(of_set):
            for risk in transfer_risks(inputs[case], priors):
                own = accuracy.get((case, risk.strategy))
                if own is not None:
                    other = accuracy[case, SCRATCH]
                    spread = own * (1 - own) + other * (1 - other)
                    noise = float(Z * np.sqrt(spread / n_test[case]))
                    ends = risk.gain.low, risk.gain.high
                    predictions.append(
                        Prediction(
                            case, risk.strategy, risk.probability, own - other, *ends, noise
                        )
                    )
    return predictions


def area(predictions: list[Prediction]) -> float:
    """Return the area under the ROC curve of significant cases; nan without both classes."""
    significant = [p for p in predictions if p.significant]
    negative = [p.negative for p in significant]
    if len(set(negative)) < 2:
        return float("nan")
    return float(roc_auc_score(negative, [p.probability for p in significant]))


def area_interval(predictions: list[Prediction]) -> tuple[float, float]:
    """Return the 90% bootstrap interval of the area over datasets; nan if it is undefined."""
    by_dataset: dict[str, list[Prediction]] = {}
    for p in predictions:
        by_dataset.setdefault(p.case.dataset, []).append(p)
    groups = list(by_dataset.values())
    rng = np.random.default_rng(0)
    drawn = np.array(
        [
            area([p for i in rng.integers(len(groups), size=len(groups)) for p in groups[i]])
            for _ in range(DRAWS)
        ]
    )
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.05, 0.95])
    return float(low), float(high)


def report(predictions: list[Prediction]) -> str:
    """Return discrimination, sensitivity and calibration as Markdown."""
    low, high = area_interval(predictions)
    datasets = {p.case.dataset for p in predictions}
    held = np.mean([p.low <= p.gain <= p.high for p in predictions])
    lines = [
        f"{len(predictions)} predictions, {len({p.case for p in predictions})} cases, "
        f"{len(datasets)} datasets; "
        f"{sum(p.significant and p.negative for p in predictions)} with negative transfer, "
        f"{sum(p.significant and not p.negative for p in predictions)} with positive transfer.",
        f"Area under the ROC curve {area(predictions):.2f} [{low:.2f}, {high:.2f}]; the 90% "
        f"interval of the gain held in {100 * held:.0f}%.",
        "",
        "| strategy | cases | negative transfer | warned at negative transfer | "
        "warned at positive transfer |",
        "|---|---|---|---|---|",
    ]
    for name in [*dict.fromkeys(p.strategy for p in predictions), "all"]:
        mine = [p for p in predictions if name in (p.strategy, "all")]
        bad = [p.probability >= RISKY for p in mine if p.significant and p.negative]
        good = [p.probability >= RISKY for p in mine if p.significant and not p.negative]
        lines.append(f"| {name} | {len(mine)} | {len(bad)} | {_share(bad)} | {_share(good)} |")
    lines += ["", "| predicted probability | predictions | mean predicted | gain below 0 |"]
    lines.append("|---|---|---|---|")
    for (start, end), mine in _binned(predictions).items():
        mean = float(np.mean([p.probability for p in mine]))
        true = float(np.mean([p.negative for p in mine]))
        span = f"{100 * start:.0f} to {100 * end:.0f}%"
        lines.append(f"| {span} | {len(mine)} | {100 * mean:.0f}% | {100 * true:.0f}% |")
    return "\n".join(lines)


def plot(predictions: list[Prediction]) -> str:
    """Draw a reliability diagram of the predicted probabilities, as SVG."""
    values = []
    for mine in _binned(predictions).values():
        share = proportion(float(np.mean([p.negative for p in mine])), len(mine))
        mean = float(np.mean([p.probability for p in mine]))
        bars = {"low": share.low, "share": share.mid, "high": share.high, "n": len(mine)}
        values.append({"predicted": mean} | bars)
    percent: dict[str, Any] = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    percent["axis"] = {"format": "%"}
    x = {"field": "predicted", "title": "predicted probability that from scratch wins", **percent}
    y = {"title": "observed frequency, with 90% intervals", **percent}
    at_share = {"x": x, "y": {"field": "share", **y}}
    ends = {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}}
    diagonal = {"values": [{"predicted": 0, "share": 0}, {"predicted": 1, "share": 1}]}
    dashes = {"type": "line", "strokeDash": [4, 4], "color": "grey"}
    label = {"type": "text", "dx": 14, "dy": 10, "fontSize": 10}
    layers = [
        {"data": diagonal, "mark": dashes, "encoding": at_share},
        {"mark": "rule", "encoding": ends},
        {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": at_share},
        {"mark": label, "encoding": {**at_share, "text": {"field": "n"}}},
    ]
    spec = {"width": 300, "height": 300, "data": {"values": values}, "layer": layers}
    return vegalite_to_svg(spec)


def _binned(predictions: list[Prediction]) -> dict[tuple[float, float], list[Prediction]]:
    """Return predictions by bin of probability, without empty bins."""
    binned = {}
    for start, end in pairwise(BINS):
        mine = [
            p for p in predictions if start <= p.probability < end or p.probability == end == 1
        ]
        if mine:
            binned[start, end] = mine
    return binned


def fine_tuning_gain(rows: list[Row], inputs: Mapping[Case, DecisionInputs]) -> str:
    """Compare full fine-tuning, which the finding advises, with the best of probe and scratch.

    Only cases where training from scratch beats the linear probe count.
    """
    rows = [r for r in rows if case_of(r) in inputs]
    found: dict[Case, dict[str, float]] = {}
    for row in rows:
        if not row["grid"]:
            found.setdefault(case_of(row), {})[row["strategy"]] = row["accuracy"]
    needed = {"linear_probe", SCRATCH, "full_fine_tune"}
    lost = [a for a in found.values() if needed <= a.keys() and a[SCRATCH] > a["linear_probe"]]
    if not lost:
        return "No case with all rows on which training from scratch beats the linear probe."
    tuned = 100 * float(np.mean([a["full_fine_tune"] for a in lost]))
    best = 100 * float(np.mean([max(a[SCRATCH], a["linear_probe"]) for a in lost]))
    return (
        f"Where from_scratch beats linear_probe ({len(lost)} cases): full_fine_tune {tuned:.1f}%, "
        f"best of from_scratch and linear_probe {best:.1f}%."
    )


def threshold(predictions: list[Prediction]) -> float:
    """Return the smallest probability to warn from with at most `MAX_FALSE_ALARMS`."""
    helped = np.sort([p.probability for p in predictions if p.significant and not p.negative])
    n_warned = int(MAX_FALSE_ALARMS * len(helped))
    return float(np.nextafter(helped[len(helped) - n_warned - 1], 1)) if len(helped) else 0.0


def thresholds_of_others(predictions: list[Prediction]) -> str:
    """Return how many cases are warned of with thresholds that were chosen on other datasets."""
    found = {
        name: threshold([p for p in predictions if p.case.dataset != name])
        for name in {p.case.dataset for p in predictions}
    }
    warned = [
        (p.strategy, p.negative, p.probability >= found[p.case.dataset])
        for p in predictions
        if p.significant
    ]
    low, high = (f"{100 * end(found.values()):.0f}" for end in (min, max))
    lines = [
        f"Smallest threshold with at most {100 * MAX_FALSE_ALARMS:.0f}% false alarms: "
        f"{100 * threshold(predictions):.0f}%; without one dataset {low} to {high}%. "
        f"Warnings in use: from {100 * RISKY:.0f}%.",
        "",
        "| strategy | warned at negative transfer | warned at positive transfer |",
        "|---|---|---|",
    ]
    for name in [*dict.fromkeys(strategy for strategy, *_ in warned), "all"]:
        bad, good = (
            [is_warned for s, is_bad, is_warned in warned if name in (s, "all") and is_bad == kind]
            for kind in (True, False)
        )
        lines.append(f"| {name} | {_of(bad)} | {_of(good)} |")
    return "\n".join(lines)


def _of(warned: list[bool]) -> str:
    return f"{sum(warned)} of {len(warned)}"


def _share(warned: list[bool]) -> str:
    return f"{sum(warned)} ({100 * np.mean(warned):.0f}%)" if warned else "no such case"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--cases", action="store_true", help="also list every prediction")
    parser.add_argument("--plot", type=Path, help="SVG file for the reliability diagram")
    args = parser.parse_args(argv)
    rows, inputs = read_rows(args.results), read_inputs(args.evidence)
    predictions = predict(rows, inputs)
    if not predictions:
        print("There is no case with evidence and a row of from_scratch.")
        return
    larger = larger_sizes_table(predict_larger_sizes(rows, inputs))
    chosen = thresholds_of_others(predictions)
    print(report(predictions), chosen, fine_tuning_gain(rows, inputs), larger, sep="\n\n")
    if args.plot is not None:
        args.plot.write_text(plot(predictions))
    for p in predictions if args.cases else ():
        print(*p.case, p.strategy, f"{100 * p.probability:.0f}%", f"{100 * p.gain:+.1f}")


if __name__ == "__main__":
    main()
