"""Key figures and the class table of the HTML page."""

from dataclasses import dataclass

from advisor.report.words import (
    DISPLAY,
    VERDICTS,
    break_even_words,
    metric_name,
    pretraining_words,
    similarity_words,
    statistics_words,
    title,
    transfer_words,
    with_titles,
)
from advisor.types.advice import Advice
from advisor.types.durations import duration
from advisor.types.outcome import Outcome
from strategies.core.metrics import Interval


@dataclass(frozen=True)
class Fact:
    """A key figure: label, value and a detail such as its interval."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and the number to sort by (None: sort by the text)."""

    text: str
    value: float | None = None


def percent_fact(label: str, share: Interval, more: str = "", unit: str = "%") -> Fact:
    """Return a fraction in percent with its interval, and further details if there are any."""
    low, mid, high = (f"{100 * x:.1f}" for x in (share.low, share.mid, share.high))
    return Fact(label, f"{mid}{unit}", f"[{low}, {high}]{more}")


def main_facts(advice: Advice, outcome: Outcome | None) -> tuple[Fact, ...]:
    """Return the key figures for the top of the page: of the run, or else of the advice."""
    best, quadrant = advice.best, advice.quadrant
    if outcome is not None:
        return _run_facts(outcome)
    second = advice.recommendations[1] if len(advice.recommendations) > 1 else None
    facts = [
        percent_fact("Expected accuracy", best.accuracy),
        Fact("Predicted time of one fit", duration(best.seconds.mid), _span(best.seconds)),
        Fact("Images", f"{advice.profile.n:,}", f"{quadrant.size}: {_per_class(advice)}"),
    ]
    similarity = quadrant.similarity
    detail = f"[{similarity.low:.2f}, {similarity.high:.2f}]; {quadrant.domain}"
    facts.append(Fact("Similarity to ImageNet", f"{similarity.mid:.2f}", detail))
    if second is not None:
        facts.append(Fact("Runner-up", title(second.strategy), second.accuracy.percent()))
    return tuple(facts)


def _run_facts(outcome: Outcome) -> tuple[Fact, ...]:
    test, best = outcome.test, outcome.best
    facts = []
    if test is not None:
        facts.append(percent_fact("Test accuracy", test.accuracy))
        if test.top_5 is not None:
            facts.append(percent_fact("Top-5 accuracy", test.top_5))
        balanced = f"{100 * test.mean_per_class:.1f}%"
        facts.append(Fact("Balanced accuracy", balanced, "mean per-class recall"))
        error = f"{100 * test.calibration_error:.1f} points"
        facts.append(Fact("Expected calibration error", error, "0: perfectly calibrated"))
    if best.val_accuracy is not None:
        facts.append(percent_fact("Validation accuracy", best.val_accuracy))
    if outcome.transfer_gain is not None:
        found = outcome.transfer_gain
        value, detail = found.gain.points(), f"{VERDICTS[found.verdict]}; over {found.control}"
        if found.verdict == "undetermined":
            value, _, detail = transfer_words(found).partition(": ")
        facts.append(Fact("Transfer gain", value, detail))
    facts.append(Fact("Run time", duration(outcome.seconds), f"{len(outcome.trials)} trials"))
    return tuple(facts)


def measurements(advice: Advice) -> tuple[Fact, ...]:
    """Return the measurements that have no chart."""
    profile = advice.profile
    measured = f" on {profile.n_measured:,} images"
    facts = [percent_fact("Linear probe (softmax)", profile.linear_probe.accuracy, measured)]
    if profile.knn is not None:
        facts.append(percent_fact("k-NN accuracy", profile.knn))
    if profile.pixel_probe is not None:
        thumbnails = "; linear classifier on grayscale thumbnails"
        facts.append(percent_fact("Pixel baseline", profile.pixel_probe, thumbnails))
    if profile.transfer_gain is not None:
        detail = "best depth, over the same network with random weights"
        facts.append(Fact("Transfer gain of probes", profile.transfer_gain.points(), detail))
    for risk in advice.risks:
        label = f"Negative transfer: {title(risk.strategy)}"
        detail = f"probability; predicted gain over training from scratch {risk.gain.points()}"
        detail += with_titles(break_even_words(risk))
        facts.append(Fact(label, f"{100 * risk.probability:.0f}%", detail))
    for name, score in profile.transferability.items():
        detail = f"[{score.low:.3f}, {score.high:.3f}]; {DISPLAY}"
        facts.append(Fact(metric_name(name), f"{score.mid:.3f}", detail))
    similarity, pretraining = profile.similarity, pretraining_words(profile)
    detail = (
        f"{similarity_words(similarity)}; reference: {similarity.reference}; "
        f"{similarity.n_images:,} images"
    )
    facts.append(Fact("Domain", advice.quadrant.domain, detail))
    if pretraining is not None:
        facts.append(Fact("Pretraining", "not ImageNet", pretraining))
    for name, value, detail in statistics_words(profile.backbone_statistics):
        facts.append(Fact(f"Backbone: {name}", value, detail))
    facts.append(Fact("Median shorter side", f"{profile.median_side_px:.0f} px"))
    facts.append(Fact("Class imbalance", f"{profile.imbalance:.1f} to 1", "largest to smallest"))
    return tuple(facts)


def class_table(
    advice: Advice, outcome: Outcome | None
) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Return the columns and rows of the class table."""
    statistics = advice.profile.backbone_statistics
    head = None if statistics is None else statistics.head
    nearest = {} if head is None else {c.name: c for c in head.nearest_source_classes}
    test = None if outcome is None else outcome.test
    recalls = {} if test is None else dict(zip(test.classes, test.per_class, strict=True))
    transfer = outcome.transfer_gain if outcome else None
    gains = {} if transfer is None else {c.name: c for c in transfer.per_class}
    columns = ["Class", "Images"]
    columns += ["Source-head prediction", "Share"] if nearest else []
    columns += ["Test accuracy"] if recalls else []
    columns += ["Transfer gain"] if gains else []
    rows = []
    for name, n in advice.profile.n_by_class.items():
        row = [Cell(name), Cell(f"{n:,}", n)]
        if nearest:
            there = nearest.get(name)
            row.append(Cell("" if there is None else there.source_class))
            row.append(_cell(None if there is None else there.share))
        if recalls:
            row.append(_cell(recalls.get(name)))
        if gains:
            gain = gains.get(name)
            row.append(Cell("", -9) if gain is None else Cell(gain.gain.points(), gain.gain.mid))
        rows.append(tuple(row))
    return tuple(columns), tuple(rows)


def _cell(share: Interval | None) -> Cell:
    return Cell("not evaluated", -1.0) if share is None else Cell(share.percent(), share.mid)


def _per_class(advice: Advice) -> str:
    return f"{advice.profile.n_per_class:.0f} per class, {advice.profile.n_classes} classes"


def _span(seconds: Interval) -> str:
    return f"[{duration(seconds.low)}, {duration(seconds.high)}] on this machine"
