"""Whether the predicted chance of negative transfer holds on datasets that it was not fitted to.

    python benchmarks/transfer_risk.py --plot FILE.svg

A case (set, size, seed) and a strategy are truly negative where the 90% interval of its test
accuracy minus that of ``from_scratch`` lies below 0, truly positive where it lies above; what
contains 0 is not judged, but counts by its sign in the table of calibration. The chance is
predicted with priors fitted without the set under test.
Only rows without anything given count, and only cases with both rows. The area under the curve
has a 90% bootstrap interval over sets.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from fit_priors import fit
from rows import EVIDENCE, RESULTS, Case, Row, case_of, read_profiles, read_rows
from sklearn.metrics import roc_auc_score
from vl_convert import vegalite_to_svg

from advisor.decide.gain_model import Z
from advisor.decide.negative_transfer import SCRATCH, chance_with_more, transfer_risks
from advisor.decide.priors import priors_of
from advisor.findings.transfer import HARM
from advisor.types.profile import Profile
from strategies.core.metrics import proportion

DRAWS = 500
BINS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Told:
    """What was predicted of a strategy on a case, and what was measured.

    Attributes
    ----------
    probability
        Predicted, that training from scratch does better.
    gain, low, high
        Test accuracy minus that of ``from_scratch``, measured; the predicted 90% interval.
    noise
        Half of the 90% interval of the measured gain, as if the images were not the same: too
        wide rather than too narrow.
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
        """Whether training from scratch did better."""
        return self.gain < 0

    @property
    def sure(self) -> bool:
        """Whether the sign of the gain is more than chance."""
        return abs(self.gain) > self.noise


def look_ahead(rows: list[Row], profiles: Mapping[Case, Profile]) -> list[tuple[float, bool]]:
    """Predict from the evidence of few images whether scratch wins with more, and tell if so.

    By priors without the set; what is measured is the mean gain over the seeds of the larger size.
    """
    rows = [r for r in rows if case_of(r) in profiles and not r["grid"]]
    accuracy = {(case_of(r), r["strategy"]): r["accuracy"] for r in rows}
    found: list[tuple[float, bool]] = []
    for name in sorted({c[0] for c in profiles}):
        priors = priors_of(fit([r for r in rows if r["set"] != name], profiles))
        own = [(c, p) for c, p in profiles.items() if c[0] == name]
        for size in sorted({c[1] for c, _ in own}):
            larger = [c for c, _ in own if c[1] == size]
            for case, profile in ((c, p) for c, p in own if c[1] < size):
                for risk in transfer_risks(profile, priors):
                    gains = [
                        accuracy[c, risk.strategy] - accuracy[c, SCRATCH]
                        for c in larger
                        if {(c, risk.strategy), (c, SCRATCH)} <= accuracy.keys()
                    ]
                    if gains:
                        factor = size / case[1]
                        chance = chance_with_more(factor, risk.strategy, profile, priors)
                        found.append((chance, bool(np.mean(gains) < 0)))
    return found


def read_ahead(found: list[tuple[float, bool]]) -> str:
    """Return how often scratch won with more images, by the chance that was predicted."""
    chances, won = (np.array(v) for v in zip(*found, strict=True))
    lines = ["| predicted for more images | predictions | mean predicted | scratch won |"]
    lines.append("|---|---|---|---|")
    for start, end in pairwise(BINS):
        mine = (chances >= start) & ((chances < end) | (end == 1))
        if mine.any():
            span = f"{100 * start:.0f} to {100 * end:.0f}%"
            mean, true = 100 * chances[mine].mean(), 100 * won[mine].mean()
            lines.append(f"| {span} | {mine.sum()} | {mean:.0f}% | {true:.0f}% |")
    return "\n".join(lines)


def predict(rows: list[Row], profiles: Mapping[Case, Profile]) -> list[Told]:
    """Predict every case by priors without its set."""
    rows = [r for r in rows if case_of(r) in profiles]
    accuracy = {(case_of(r), r["strategy"]): r["accuracy"] for r in rows if not r["grid"]}
    n_test = {case_of(r): r["n_test"] for r in rows}
    told = []
    for name in sorted({case[0] for case, strategy in accuracy if strategy == SCRATCH}):
        priors = priors_of(fit([r for r in rows if r["set"] != name], profiles))
        for case in sorted(c for c, strategy in accuracy if strategy == SCRATCH and c[0] == name):
            for risk in transfer_risks(profiles[case], priors):
                own = accuracy.get((case, risk.strategy))
                if own is not None:
                    other = accuracy[case, SCRATCH]
                    spread = own * (1 - own) + other * (1 - other)
                    noise = float(Z * np.sqrt(spread / n_test[case]))
                    ends = risk.gain.low, risk.gain.high
                    told.append(
                        Told(case, risk.strategy, risk.probability, own - other, *ends, noise)
                    )
    return told


def area(told: list[Told]) -> float:
    """Return the area under the curve of the sure ones; nan where all or none are negative."""
    judged = [t for t in told if t.sure]
    negative = [t.negative for t in judged]
    if len(set(negative)) < 2:
        return float("nan")
    return float(roc_auc_score(negative, [t.probability for t in judged]))


def area_interval(told: list[Told]) -> tuple[float, float]:
    """Return the 90% bootstrap interval over sets; nan where it cannot be had."""
    by_set: dict[str, list[Told]] = {}
    for t in told:
        by_set.setdefault(t.case[0], []).append(t)
    groups = list(by_set.values())
    rng = np.random.default_rng(0)
    drawn = np.array(
        [
            area([t for i in rng.integers(len(groups), size=len(groups)) for t in groups[i]])
            for _ in range(DRAWS)
        ]
    )
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.05, 0.95])
    return float(low), float(high)


def report(told: list[Told]) -> str:
    """Return discrimination, calibration, and what is warned of, as Markdown."""
    low, high = area_interval(told)
    sets = {t.case[0] for t in told}
    held = np.mean([t.low <= t.gain <= t.high for t in told])
    lines = [
        f"{len(told)} predictions, {len({t.case for t in told})} cases, {len(sets)} sets; "
        f"{sum(t.sure and t.negative for t in told)} truly negative, "
        f"{sum(t.sure and not t.negative for t in told)} truly positive.",
        f"Area under the curve {area(told):.2f} [{low:.2f}, {high:.2f}]; the 90% interval of the "
        f"gain held in {100 * held:.0f}%.",
        "",
        "| strategy | cases | truly negative | of these warned of | of the positive warned of |",
        "|---|---|---|---|---|",
    ]
    for name in [*dict.fromkeys(t.strategy for t in told), "all"]:
        mine = [t for t in told if name in (t.strategy, "all")]
        bad = [t.probability >= HARM for t in mine if t.sure and t.negative]
        good = [t.probability >= HARM for t in mine if t.sure and not t.negative]
        lines.append(f"| {name} | {len(mine)} | {len(bad)} | {_share(bad)} | {_share(good)} |")
    lines += ["", "| predicted chance | predictions | mean predicted | negative by sign |"]
    lines.append("|---|---|---|---|")
    for (start, end), mine in _binned(told).items():
        mean = float(np.mean([t.probability for t in mine]))
        true = float(np.mean([t.negative for t in mine]))
        span = f"{100 * start:.0f} to {100 * end:.0f}%"
        lines.append(f"| {span} | {len(mine)} | {100 * mean:.0f}% | {100 * true:.0f}% |")
    return "\n".join(lines)


def plot(told: list[Told]) -> str:
    """Draw how often scratch won over the chance that was predicted, as SVG."""
    values = []
    for mine in _binned(told).values():
        share = proportion(float(np.mean([t.negative for t in mine])), len(mine))
        mean = float(np.mean([t.probability for t in mine]))
        bars = {"low": share.low, "share": share.mid, "high": share.high, "n": len(mine)}
        values.append({"predicted": mean} | bars)
    percent: dict[str, Any] = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    percent["axis"] = {"format": "%"}
    x = {"field": "predicted", "title": "predicted chance that scratch wins", **percent}
    y = {"title": "how often it did, with 90% intervals", **percent}
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


def _binned(told: list[Told]) -> dict[tuple[float, float], list[Told]]:
    """Sort predictions into bins of chance; empty bins are left out."""
    binned = {}
    for start, end in pairwise(BINS):
        mine = [t for t in told if start <= t.probability < end or t.probability == end == 1]
        if mine:
            binned[start, end] = mine
    return binned


def remedied(rows: list[Row], profiles: Mapping[Case, Profile]) -> str:
    """Compare what the warning advises with the best of probe and scratch, where probes lose."""
    rows = [r for r in rows if case_of(r) in profiles]
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
        f"Where scratch beats the linear probe ({len(lost)} cases): full_fine_tune {tuned:.1f}%, "
        f"best of scratch and probe {best:.1f}%."
    )


def _share(warned: list[bool]) -> str:
    return f"{sum(warned)} ({100 * np.mean(warned):.0f}%)" if warned else "none there"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--evidence", type=Path, default=EVIDENCE)
    parser.add_argument("--cases", action="store_true", help="list every prediction")
    parser.add_argument("--plot", type=Path, help="where to draw the calibration, as SVG")
    args = parser.parse_args(argv)
    rows, profiles = read_rows(args.results), read_profiles(args.evidence)
    told = predict(rows, profiles)
    if not told:
        print("There is no case with a row of from_scratch and its evidence.")
        return
    parts = report(told), remedied(rows, profiles), read_ahead(look_ahead(rows, profiles))
    print(*parts, sep="\n\n")
    if args.plot is not None:
        args.plot.write_text(plot(told))
    for t in told if args.cases else ():
        print(*t.case, t.strategy, f"{100 * t.probability:.0f}%", f"{100 * t.gain:+.1f}")


if __name__ == "__main__":
    main()
