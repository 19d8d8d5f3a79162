"""The short facts and the class table of the page."""

from dataclasses import dataclass

from advisor.report.words import (
    crossing_words,
    duration,
    points,
    similarity_words,
    title,
    transfer_words,
)
from advisor.types.advice import Advice
from advisor.types.outcome import Outcome
from advisor.types.profile import loss_words
from strategies.core.metrics import Interval


@dataclass(frozen=True)
class Fact:
    """A number with its name and what it means."""

    what: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number that it sorts by (None: the text)."""

    text: str
    value: float | None = None


def main_facts(advice: Advice, outcome: Outcome | None) -> tuple[Fact, ...]:
    """Return what stands at the top of the page."""
    best, quadrant = advice.best, advice.quadrant
    if outcome is not None:
        return _run_facts(outcome)
    second = advice.recommendations[1] if len(advice.recommendations) > 1 else None
    facts = [
        Fact("Expected accuracy", _mid(best.accuracy), _ends(best.accuracy)),
        Fact("Time of one fit", duration(best.seconds.mid), _span(best.seconds)),
        Fact("ImageInputs", f"{advice.profile.n:,}", f"{quadrant.size}: {_a_class(advice)}"),
    ]
    similarity = quadrant.similarity
    if similarity is None:
        facts.append(Fact("Similarity to ImageNet", "unknown"))
    else:
        said = f"[{similarity.low:.2f}, {similarity.high:.2f}]; {quadrant.domain}"
        facts.append(Fact("Similarity to ImageNet", f"{similarity.mid:.2f}", said))
    if second is not None:
        facts.append(Fact("Runner-up", title(second.strategy), second.accuracy.percent()))
    return tuple(facts)


def _run_facts(outcome: Outcome) -> tuple[Fact, ...]:
    test, best = outcome.test, outcome.best
    facts = []
    if test is not None:
        facts.append(Fact("Test accuracy", _mid(test.accuracy), _ends(test.accuracy)))
        if test.top_5 is not None:
            facts.append(Fact("Among the first five", _mid(test.top_5), _ends(test.top_5)))
        facts.append(Fact("Mean of the classes", f"{100 * test.mean_per_class:.1f}%"))
        gap = f"{100 * test.calibration_error:.1f} points"
        facts.append(Fact("Calibration error", gap, "0: its probabilities can be believed"))
    if best.val_accuracy is not None:
        facts.append(
            Fact("Validation accuracy", _mid(best.val_accuracy), _ends(best.val_accuracy))
        )
    if outcome.transfer_gain is not None:
        found = outcome.transfer_gain
        value, said = points(found.gain), f"{found.verdict}; against {found.control}"
        if found.verdict == "untold":
            value, _, said = transfer_words(found).partition(": ")
        facts.append(Fact("Transfer gain", value, said))
    facts.append(Fact("Took", duration(outcome.seconds), f"{len(outcome.trials)} trials"))
    return tuple(facts)


def measurements(advice: Advice) -> tuple[Fact, ...]:
    """Return what was measured and has no chart."""
    profile = advice.profile
    facts = [
        Fact(
            "Linear probe (softmax)",
            _mid(profile.linear_probe.accuracy),
            f"{_ends(profile.linear_probe.accuracy)} on {profile.n_measured:,} images",
        )
    ]
    if profile.knn is not None:
        facts.append(Fact("Nearest neighbours", _mid(profile.knn), _ends(profile.knn)))
    if profile.pixel_probe is not None:
        said = f"{_ends(profile.pixel_probe)} from grey thumbnails, no network"
        facts.append(Fact("Brightness alone", _mid(profile.pixel_probe), said))
    if profile.transfer_gain is not None:
        said = "best depth against the same network with random weights"
        facts.append(Fact("Pretraining brings", points(profile.transfer_gain), said))
    for risk in advice.risks:
        name = f"Negative transfer, {title(risk.strategy).lower()}"
        said = f"chance; predicted gain over training from scratch {points(risk.gain)}"
        said += crossing_words(risk)
        facts.append(Fact(name, f"{100 * risk.probability:.0f}%", said))
    if profile.pilot is not None:
        pilot = profile.pilot
        said = f"fine-tuning {pilot.n_train:,} images, against a probe on the same"
        said += f"; {loss_words(pilot.loss_gain)}"
        facts.append(Fact("Pilot", points(pilot.gain), said))
        same = "layer SVM, quarters and views included, on the same images"
        same += f"; {loss_words(pilot.svm_loss_gain)}"
        facts.append(Fact("Pilot of the SVM", points(pilot.svm_gain), same))
    for name, score in profile.transferability.items():
        text = f"[{score.low:.3f}, {score.high:.3f}]; to compare backbones on one dataset"
        facts.append(Fact(name, f"{score.mid:.3f}", text))
    if profile.similarity is not None:
        said = f"{similarity_words(profile.similarity)}; against {profile.similarity.reference}"
        facts.append(Fact("Domain", advice.quadrant.domain, said))
    facts.append(Fact("Median short side", f"{profile.median_side_px:.0f} px"))
    facts.append(Fact("Largest to smallest class", f"{profile.imbalance:.1f} to 1"))
    return tuple(facts)


def class_table(
    advice: Advice, outcome: Outcome | None
) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Return the columns and rows of the table of classes."""
    similarity = advice.profile.similarity
    evidence = None if similarity is None else similarity.evidence
    lands = {} if evidence is None else {c.name: c for c in evidence.nearest_source_classes}
    test = None if outcome is None else outcome.test
    judged = {} if test is None else dict(zip(test.classes, test.per_class, strict=True))
    gains = outcome.transfer_gain if outcome else None
    gained = {} if gains is None else {c.name: c for c in gains.per_class}
    columns = ["Class", "ImageInputs"]
    columns += ["The network takes it for", "Share"] if lands else []
    columns += ["Test accuracy"] if judged else []
    columns += ["Gain from pretraining"] if gained else []
    rows = []
    for name, n in advice.profile.n_by_class.items():
        row = [Cell(name), Cell(f"{n:,}", n)]
        if lands:
            there = lands.get(name)
            row.append(Cell("" if there is None else there.source_class))
            row.append(_cell(None if there is None else there.share))
        if judged:
            row.append(_cell(judged.get(name)))
        if gained:
            gain = gained.get(name)
            row.append(Cell("", -9) if gain is None else Cell(points(gain.gain), gain.gain.mid))
        rows.append(tuple(row))
    return tuple(columns), tuple(rows)


def _cell(share: Interval | None) -> Cell:
    return Cell("not judged", -1.0) if share is None else Cell(share.percent(), share.mid)


def _a_class(advice: Advice) -> str:
    return f"{advice.profile.n_per_class:.0f} in each of {advice.profile.n_classes} classes"


def _mid(interval: Interval) -> str:
    return f"{100 * interval.mid:.1f}%"


def _ends(interval: Interval) -> str:
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _span(seconds: Interval) -> str:
    return f"[{duration(seconds.low)}, {duration(seconds.high)}] on this machine"
