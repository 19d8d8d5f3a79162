"""Reports of an evaluation: one HTML page, and text for the terminal."""

import base64
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.report.charts.run import calibration_chart, classes_chart, confusion_chart
from advisor.report.facts import Cell, Fact, percent_fact
from advisor.report.gallery import make_thumbs
from advisor.report.html import (
    MOST_LISTED,
    chart_data,
    confused_pairs,
    explanation_content,
    render,
)
from advisor.report.maps.mistakes import Explanations
from advisor.types.evaluation import ClassScores, DatasetEvaluation
from strategies.core.metrics import LEVEL, Interval
from strategies.data.image import shown

MOST_CLASSES_PRINTED, MOST_IN_MATRIX = 40, 10
"""The terminal shows at most this many classes (the worst), and the matrix of at most so many."""
MOST_PAIRS = 8
_BAR = 24


def evaluation_page(
    found: DatasetEvaluation, n_workers: int = 2, explained: Explanations | None = None
) -> str:
    """Return an evaluation as one HTML page, without network requests.

    Parameters
    ----------
    n_workers
        Threads that make the thumbnails of misclassified images.
    explained
        Explanations of its mistakes; None: their thumbnails alone are shown.
    """
    explained = explained or Explanations()
    scores, images = found.scores, _which(found)
    drawn = (
        calibration_chart(scores, images),
        classes_chart(scores, images),
        confusion_chart(scores, images),
    )
    charts = [chart for chart in drawn if chart is not None]
    missing = [m.path for m in scores.mistakes if m.path not in explained.thumbs]
    thumbs = {**explained.thumbs, **make_thumbs({p: Path(p) for p in missing}, n_workers)}
    root = f"{shown(found.data)}/"
    return render(
        "evaluation.html",
        chart_data(charts),
        heading=f"Accuracy {scores.accuracy.percent()}",
        run_name=shown(found.run),
        data_name=shown(found.data),
        size_line=_size_line(found),
        facts=_facts(found),
        remarks=remarks(found),
        charts=charts,
        class_columns=("Class", "Images", "Precision", "Recall", "F1 score"),
        class_rows=[_cells(c) for c in found.per_class],
        mistakes=confused_pairs(scores),
        **explanation_content(explained),
        quarantine=[
            {"path": shown(s.path).removeprefix(root), "reason": s.reason}
            for s in found.quarantine[:MOST_LISTED]
        ],
        n_quarantined=len(found.quarantine),
        thumbs={path: base64.b64encode(data).decode() for path, data in thumbs.items()},
        root=root,
    )


def print_evaluation(console: Console, found: DatasetEvaluation) -> None:
    """Print an evaluation: scores, classes, confusion matrix and reliability diagram."""
    facts = Table.grid(padding=(0, 2))
    for fact in _facts(found):
        facts.add_row(fact.label[0].lower() + fact.label[1:], f"{fact.value} {fact.detail}")
    console.print(
        Text(f"{shown(found.run)} on {shown(found.data)}", style="bold"),
        Text(_size_line(found)),
        Padding(facts, (0, 0, 0, 2)),
        *(Text(line, style="bold") for line in remarks(found)),
        Text("\nClasses", style="bold"),
        Padding(_classes(found), (0, 0, 0, 2)),
        Text("\nConfusion matrix", style="bold"),
        Padding(_confusion(found), (0, 0, 0, 2)),
        Text("\nReliability diagram", style="bold"),
        Padding(_reliability(found), (0, 0, 0, 2)),
        Text(f"\nIntervals are {100 * LEVEL:.0f}% intervals."),
        sep="\n",
    )


def remarks(found: DatasetEvaluation) -> tuple[str, ...]:
    """Return what a reader of the scores must know, a sentence each."""
    lines = []
    seen = found.seen
    if seen is not None and seen.n_train + seen.n_val:
        parts = [(seen.n_train, "train"), (seen.n_val, "validation")]
        counts = " and ".join(f"{n:,} {word} images" for n, word in parts if n)
        lines.append(
            f"Byte-identical to {counts} of the run, e.g. {seen.examples[0]}. They say little "
            "about new images."
        )
    if found.missing:
        n = len(found.missing)
        names = ", ".join(found.missing[:10]) + (", ..." if n > 10 else "")
        lines.append(f"No image of {n} of the classifier's classes: {names}.")
    for given, name in found.renamed:
        lines.append(f"The class {given} of the dataset is the classifier's {name}.")
    if found.ignored:
        n_images = sum(found.ignored.values())
        names = ", ".join(f"{name} ({n:,})" for name, n in found.ignored.items())
        lines.append(f"Left out: {n_images:,} images of unknown classes: {names}.")
    return tuple(lines)


def _which(found: DatasetEvaluation) -> str:
    words = {"train": "train images", "val": "validation images", "test": "test images"}
    return words.get(found.split, "images")


def _size_line(found: DatasetEvaluation) -> str:
    n_classes = sum(c.n > 0 for c in found.per_class)
    bad = f", {len(found.quarantine):,} files left out" if found.quarantine else ""
    what = f"{found.scores.n:,} {_which(found)} of {n_classes} classes{bad}"
    return f"{what} ({found.split_source})"


def _facts(found: DatasetEvaluation) -> list[Fact]:
    scores, loss = found.scores, found.log_loss
    facts = [
        percent_fact("Accuracy", scores.accuracy),
        percent_fact("Balanced accuracy", found.balanced_accuracy),
        Fact("Log loss", f"{loss.mid:.3f}", f"[{loss.low:.3f}, {loss.high:.3f}] nats"),
        percent_fact("Calibration error (ECE)", found.calibration_error, unit=" points"),
    ]
    if scores.top_5 is not None:
        facts.insert(2, percent_fact("Top-5 accuracy", scores.top_5))
    if found.run_accuracy is not None:
        facts.append(percent_fact("Accuracy on the run's own test", found.run_accuracy))
    return facts


def _cells(c: ClassScores) -> tuple[Cell, ...]:
    scores = (c.precision, c.recall, c.f1)
    return (
        Cell(c.name),
        Cell(f"{c.n:,}", c.n),
        *(Cell("", -1.0) if s is None else Cell(s.percent(), s.mid) for s in scores),
    )


def _classes(found: DatasetEvaluation) -> RenderableType:
    occurring = [c for c in found.per_class if c.n]
    printed = occurring
    if len(occurring) > MOST_CLASSES_PRINTED:
        printed = sorted(occurring, key=lambda c: 0 if c.f1 is None else c.f1.mid)
        printed = printed[:MOST_CLASSES_PRINTED]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="")
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    table.add_column("images", justify="right")
    for name in ("precision", "recall", "F1"):
        table.add_column(name, no_wrap=True)
    for c in printed:
        cells = ["" if s is None else _short(s) for s in (c.precision, c.recall, c.f1)]
        table.add_row(Text(c.name), f"{c.n:,}", *cells)
    if len(printed) == len(occurring):
        return table
    more = f"The {len(printed)} of {len(occurring)} classes with the lowest F1; --json has all."
    return Group(table, Text(more))


def _short(share: Interval) -> str:
    """Return a fraction in whole percent with its interval, to fit three of them in a line."""
    low, mid, high = (100 * x for x in (share.low, share.mid, share.high))
    return f"{mid:.0f}% [{low:.0f}, {high:.0f}]"


def _confusion(found: DatasetEvaluation) -> RenderableType:
    """Return the matrix of few classes, or the most confused pairs of many."""
    scores = found.scores
    if len(scores.classes) > MOST_IN_MATRIX:
        return _pairs(found)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="")
    table.add_column("true \\ predicted", overflow="ellipsis", no_wrap=True, max_width=22)
    for number in range(1, len(scores.classes) + 1):
        table.add_column(str(number), justify="right")
    for number, (name, row) in enumerate(zip(scores.classes, scores.confusion, strict=True), 1):
        cells = [Text(f"{n:,}" if n else "·", style="bold" if n else "dim") for n in row]
        table.add_row(Text(f"{number} {name}"), *cells)
    return table


def _pairs(found: DatasetEvaluation) -> RenderableType:
    scores = found.scores
    counts = [
        (n, scores.classes[t], scores.classes[p])
        for t, row in enumerate(scores.confusion)
        for p, n in enumerate(row)
        if n and t != p
    ]
    if not counts:
        return Text("No image was misclassified.")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("true class", "predicted as"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    table.add_column("images", justify="right")
    for n, true, predicted in sorted(counts, key=lambda c: -c[0])[:MOST_PAIRS]:
        table.add_row(Text(true), Text(predicted), f"{n:,}")
    return Group(table, Text("The most confused pairs; --json and --html have the matrix."))


def _reliability(found: DatasetEvaluation) -> RenderableType:
    """Draw accuracy by confidence: a bar for the accuracy, a mark at the confidence."""
    lines: Sequence[Text] = [
        Text(f"{'confidence':<12}{'accuracy':<22}{'images':>8}  bar: accuracy, |: confidence")
    ]
    rows = [
        Text(
            f"{100 * b.confidence:>9.1f}%  {b.accuracy.percent():<22}{b.n:>8,}  "
            f"{_bar(b.accuracy.mid, b.confidence)}"
        )
        for b in found.scores.calibration
    ]
    return Group(*lines, *rows)


def _bar(accuracy: float, confidence: float) -> str:
    cells = ["█" if i < round(_BAR * accuracy) else " " for i in range(_BAR + 1)]
    cells[round(_BAR * confidence)] = "|"
    return "".join(cells).rstrip()
