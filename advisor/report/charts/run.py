"""Charts of a run (Vega-Lite): its trials, and the evaluation of the classifier on test."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from advisor.report.charts.vega import (
    PERCENT,
    Chart,
    Row,
    estimate_tooltip,
    interval_row,
    percent_text,
    points_with_intervals,
    x_axis,
    y_axis,
)
from advisor.report.importance import varied
from advisor.report.words import VERDICTS, pairs, title
from advisor.types.outcome import Outcome, TrialRecord
from strategies.core.metrics import Evaluation
from strategies.registry import STRATEGIES

MOST_CLASSES = 20
"""Maximum number of classes in a chart: those with the most errors are shown."""
MOST_CLASSES_WITH_COUNTS = 12
FEWEST_TRIALS = 3
_ACCURACY = "validation accuracy"


def outcome_charts(
    outcome: Outcome, shares: Mapping[str, Mapping[str, float]]
) -> tuple[Chart, ...]:
    """Return the charts of a run; `shares` is the result of `importance`."""
    made: list[Chart | None] = [trials_chart(outcome.trials)]
    by_strategy: dict[str, list[TrialRecord]] = {}
    for trial in outcome.trials:
        by_strategy.setdefault(trial.strategy, []).append(trial)
    made += [parallel_chart(name, trials) for name, trials in by_strategy.items()]
    made += [importance_chart(name, share) for name, share in shares.items()]
    if outcome.test is not None:
        made += [calibration_chart(outcome.test), classes_chart(outcome.test)]
        made.append(confusion_chart(outcome.test))
    made.append(gain_chart(outcome))
    return tuple(chart for chart in made if chart is not None)


def trials_chart(trials: Sequence[TrialRecord]) -> Chart | None:
    """Return the optimization history: validation accuracy by trial, and the best so far."""
    values = _trial_rows(trials)
    if not values:
        return None
    x = {
        "field": "trial",
        "type": "quantitative",
        "title": "Trial",
        "axis": {"format": "d", "values": list(range(0, len(trials), max(1, len(trials) // 10)))},
        "scale": {"nice": False, "padding": 14},
    }
    names = [title(name) for name in STRATEGIES]
    seen = list(dict.fromkeys(v["strategy"] for v in values))
    colour = {
        "field": "strategy",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names, "range": [f"var(--c{i})" for i in range(len(names))]},
        "legend": {"orient": "top", "columns": 2, "values": seen},
    }
    y = y_axis("Validation accuracy", PERCENT)
    tooltip = estimate_tooltip(x, PERCENT, colour)
    tooltip.append({"field": "seconds", "title": "seconds", "format": ".1f"})
    tooltip.append({"field": "settings", "title": "hyperparameters"})
    interval = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    step = {"type": "line", "interpolate": "step-after", "color": "var(--soft)"}
    best_so_far = {"field": "best", "type": "quantitative"}
    return Chart(
        "trials",
        "Optimization history",
        "Validation accuracy of every finished trial, with its interval. Line: best so far.",
        {
            "height": 260,
            "data": {"values": values},
            "layer": [
                {"mark": step, "encoding": {"x": x, "y": best_so_far}},
                {"mark": {"type": "rule"}, "encoding": {"x": x, **interval, "color": colour}},
                {
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                    "encoding": {"x": x, "y": y, "color": colour, "tooltip": tooltip},
                },
            ],
        },
        ("trial", "strategy", "validation accuracy", "seconds", "hyperparameters"),
        tuple(
            (str(v["trial"]), v["strategy"], percent_text(v), f"{v['seconds']:.1f}", v["settings"])
            for v in values
        ),
        wide=True,
    )


def _trial_rows(trials: Sequence[TrialRecord]) -> list[Row]:
    values: list[Row] = []
    best = 0.0
    for trial in trials:
        if trial.val_accuracy is None:
            continue
        best = max(best, trial.val_accuracy.mid)
        values.append(
            {
                "trial": trial.number,
                "strategy": title(trial.strategy),
                **interval_row(trial.val_accuracy),
                "best": best,
                "settings": ", ".join(pairs(trial.hyperparameters.items())),
                "seconds": trial.seconds,
            }
        )
    return values


def parallel_chart(strategy: str, trials: Sequence[TrialRecord]) -> Chart | None:
    """Return the parallel coordinate plot of the trials of a strategy."""
    scored = [t for t in trials if t.val_accuracy is not None]
    ranges = varied(scored)
    if len(scored) < FEWEST_TRIALS or not ranges:
        return None
    values = _parallel_rows(scored, ranges)
    line = {
        "x": {
            "field": "axis",
            "type": "ordinal",
            "title": None,
            "sort": [*ranges, _ACCURACY],
            "axis": {"labelAngle": -20, "labelLimit": 110, "grid": True},
            "scale": {"padding": 0.1},
        },
        "y": {
            "field": "place",
            "type": "quantitative",
            "title": "Range of tried values",
            "axis": {"values": [0, 1], "labelExpr": "datum.value ? 'max' : 'min'"},
        },
        "detail": {"field": "trial"},
        "opacity": {
            "field": "good",
            "type": "quantitative",
            "scale": {"domain": [0, 1], "range": [0.15, 1]},
            "legend": None,
        },
        "tooltip": [{"field": "trial"}, {"field": "settings", "title": "values"}],
    }
    mark = {"type": "line", "strokeWidth": 2, "color": "var(--c0)", "point": True}
    return Chart(
        f"parallel-{strategy}",
        f"{title(strategy)}: parallel coordinates",
        "One line per trial; darker lines have a higher validation accuracy.",
        {"height": 230, "data": {"values": values}, "layer": [{"mark": mark, "encoding": line}]},
        (),
        (),
    )


def _parallel_rows(
    scored: Sequence[TrialRecord], ranges: Mapping[str, BaseDistribution]
) -> list[Row]:
    accuracies = [t.val_accuracy.mid for t in scored if t.val_accuracy is not None]
    low, spread = min(accuracies), max(max(accuracies) - min(accuracies), 1e-9)
    rows: list[Row] = []
    for trial, accuracy in zip(scored, accuracies, strict=True):
        varying = {name: trial.hyperparameters[name] for name in ranges}
        settings = ", ".join([*pairs(varying.items()), f"{_ACCURACY} {100 * accuracy:.1f}%"])
        places = {name: _place(value, ranges[name]) for name, value in varying.items()}
        places[_ACCURACY] = (accuracy - low) / spread
        shared = {"trial": trial.number, "good": places[_ACCURACY], "settings": settings}
        rows += [{**shared, "axis": name, "place": place} for name, place in places.items()]
    return rows


def _place(value: object, kind: object) -> float:
    """Scale a value to [0, 1] within its range."""
    if isinstance(kind, FloatDistribution | IntDistribution):
        numbers = (kind.low, kind.high, float(str(value)))
        low, high, at = np.log(numbers) if kind.log else numbers
        return float((at - low) / (high - low))
    assert isinstance(kind, CategoricalDistribution)
    choices = [str(choice) for choice in kind.choices]
    return choices.index(str(value)) / (len(choices) - 1)


def importance_chart(strategy: str, shares: Mapping[str, float]) -> Chart:
    """Return the chart of hyperparameter importance of a strategy."""
    values = [{"name": name, "mid": share} for name, share in shares.items()]
    return Chart(
        f"importance-{strategy}",
        f"{title(strategy)}: hyperparameter importance",
        "Share of the variance of validation accuracy explained by each hyperparameter (fANOVA). "
        "With few trials this is a rough estimate.",
        {
            "height": 26 * len(values),
            "data": {"values": values},
            "layer": [
                {
                    "mark": {"type": "bar", "color": "var(--c0)", "height": 12},
                    "encoding": {
                        "y": {"field": "name", "type": "nominal", "title": None, "sort": None},
                        "x": {**x_axis("Importance", PERCENT), "scale": {"domain": [0, 1]}},
                        "tooltip": [{"field": "name"}, {"field": "mid", "format": PERCENT}],
                    },
                }
            ],
        },
        ("hyperparameter", "importance"),
        tuple((name, f"{100 * share:.1f}%") for name, share in shares.items()),
    )


def calibration_chart(test: Evaluation, images: str = "test images") -> Chart | None:
    """Return the reliability diagram: accuracy over confidence on `images`."""
    if not test.calibration:
        return None
    values = [
        {"confidence": b.confidence, "n": b.n, **interval_row(b.accuracy)}
        for b in test.calibration
    ]
    title = "Confidence (probability of the predicted class)"
    x = {**x_axis(title, PERCENT), "field": "confidence"}
    y = y_axis("Accuracy", PERCENT)
    ideal = {"values": [{"a": 0, "b": 0}, {"a": 1, "b": 1}]}
    diagonal = {
        "x": {"field": "a", "type": "quantitative"},
        "y": {"field": "b", "type": "quantitative"},
    }
    interval = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    confidence = {"field": "confidence", "title": "confidence", "format": PERCENT}
    tooltip = [confidence, *estimate_tooltip(x, PERCENT)[1:]]
    tooltip.append({"field": "n", "title": "images"})
    dashed = {"type": "line", "strokeDash": [3, 3], "color": "var(--soft)", "clip": True}
    dot = {"type": "point", "filled": True, "size": 60, "color": "var(--c0)", "opacity": 1}
    return Chart(
        "calibration",
        "Reliability diagram",
        f"Accuracy by confidence on the {images}. Dashed: perfect calibration. Expected "
        f"calibration error: {100 * test.calibration_error:.1f} points.",
        {
            "height": 260,
            "layer": [
                {"data": ideal, "mark": dashed, "encoding": diagonal},
                {
                    "data": {"values": values},
                    "mark": {"type": "rule", "color": "var(--c0)", "strokeWidth": 2},
                    "encoding": {"x": x, **interval},
                },
                {
                    "data": {"values": values},
                    "mark": dot,
                    "encoding": {"x": x, "y": y, "tooltip": tooltip},
                },
            ],
        },
        ("confidence", "accuracy", "images"),
        tuple((f"{100 * v['confidence']:.1f}%", percent_text(v), str(v["n"])) for v in values),
    )


def classes_chart(test: Evaluation, images: str = "test images") -> Chart:
    """Return the chart of per-class accuracy (recall), worst first."""
    known = [(n, a) for n, a in zip(test.classes, test.per_class, strict=True) if a is not None]
    worst = sorted(known, key=lambda pair: pair[1].mid)[:MOST_CLASSES]
    values = [{"class": name, **interval_row(accuracy)} for name, accuracy in worst]
    few = (
        ""
        if len(worst) == len(known)
        else f" Shown: the {MOST_CLASSES} worst of {len(known)} classes."
    )
    return Chart(
        "classes",
        "Per-class accuracy (recall)",
        f"Share of the {images} of a class that are classified correctly, worst first.{few}",
        {
            "height": 22 * len(values),
            "data": {"values": values},
            "layer": points_with_intervals(x_axis("Accuracy", PERCENT), PERCENT, "class", 110),
        },
        ("class", "accuracy"),
        tuple((v["class"], percent_text(v)) for v in values),
    )


def confusion_chart(test: Evaluation, images: str = "test images") -> Chart:
    """Return the confusion matrix on `images`."""
    table = np.array(test.confusion)
    wrong = table - np.diag(np.diag(table))
    involved = wrong.sum(axis=0) + wrong.sum(axis=1)
    chosen = np.sort(np.argsort(-involved, kind="stable")[:MOST_CLASSES])
    values = _confusion_rows(test, chosen)
    names = [test.classes[r] for r in chosen]
    axis = {"grid": False, "labelLimit": 110}
    x = {
        "field": "taken",
        "type": "nominal",
        "sort": names,
        "title": "Predicted class",
        "axis": {**axis, "labelAngle": -45},
    }
    y = {"field": "true", "type": "nominal", "sort": names, "title": "True class", "axis": axis}
    shade = {
        "field": "dark",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": [0.06, 1]},
        "legend": None,
    }
    colour = {"condition": {"test": "datum.right", "value": "var(--c0)"}, "value": "var(--c1)"}
    tooltip = [
        {"field": "true", "title": "true class"},
        {"field": "taken", "title": "predicted class"},
        {"field": "n", "title": "images"},
    ]
    layers: list[Row] = [
        {"mark": "rect", "encoding": {"x": x, "y": y, "color": colour, "opacity": shade}}
    ]
    layers[0]["encoding"]["tooltip"] = tooltip
    if len(names) <= MOST_CLASSES_WITH_COUNTS:
        ink = {"condition": {"test": "datum.dark > 0.5", "value": "var(--paper)"}}
        count = {
            "text": {"field": "n"},
            "color": {**ink, "value": "var(--ink)"},
            "tooltip": tooltip,
        }
        layers.append({"mark": {"type": "text"}, "encoding": {"x": x, "y": y, **count}})
    few = (
        ""
        if len(names) == len(test.classes)
        else (f" Shown: the {len(names)} of {len(test.classes)} classes with the most errors.")
    )
    return Chart(
        "confusion",
        "Confusion matrix",
        f"Number of {images} by true class (rows) and predicted class (columns).{few}",
        {"height": 26 * len(names), "data": {"values": values}, "layer": layers},
        ("true class", "predicted class", "images"),
        tuple((v["true"], v["taken"], str(v["n"])) for v in values if v["n"]),
        wide=True,
    )


def _confusion_rows(test: Evaluation, chosen: NDArray[np.intp]) -> list[Row]:
    table = np.array(test.confusion)
    total = np.maximum(table.sum(axis=1), 1)
    return [
        {
            "true": test.classes[r],
            "taken": test.classes[c],
            "n": int(table[r, c]),
            "dark": float(table[r, c] / total[r]),
            "right": bool(r == c),
        }
        for r in chosen
        for c in chosen
        if table[r, c] or r == c
    ]


def gain_chart(outcome: Outcome) -> Chart | None:
    """Return the chart of the transfer gain by class."""
    found = outcome.transfer_gain
    if found is None or not found.per_class:
        return None
    ranked = sorted(found.per_class, key=lambda c: c.gain.mid)
    values = [{"class": c.name, "n": c.n, **interval_row(c.gain)} for c in ranked]
    shown = values if len(values) <= MOST_CLASSES else values[:10] + values[-10:]
    zero: Row = {"data": {"values": [{"zero": 0}]}}
    zero["mark"] = {"type": "rule", "color": "var(--soft)"}
    zero["encoding"] = {"x": {"field": "zero", "type": "quantitative"}}
    rows = points_with_intervals(x_axis("Transfer gain", PERCENT), PERCENT, "class", 110)
    few = "" if len(shown) == len(values) else " Shown: the ten lowest and the ten highest gains."
    return Chart(
        "gain",
        "Transfer gain by class",
        f"Accuracy minus that of the control ({found.control}) on the same {found.n:,} images. "
        f"All classes: {found.gain.points()}, {VERDICTS[found.verdict]}.{few}",
        {"height": 22 * len(shown), "data": {"values": shown}, "layer": [zero, *rows]},
        ("class", "transfer gain"),
        tuple((c.name, c.gain.points()) for c in ranked),
    )
