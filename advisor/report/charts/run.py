"""Charts of a run: its trials, and how the classifier did on test."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from advisor.report.charts.vega import (
    PERCENT,
    Chart,
    Row,
    bars,
    ends,
    percent,
    tip,
    x_axis,
    y_axis,
)
from advisor.report.importance import varied
from advisor.report.words import pairs, points, title
from advisor.types.outcome import Outcome, TrialRecord
from strategies.core.metrics import Evaluation
from strategies.registry import STRATEGIES

MOST_CLASSES = 20
"""A chart with more classes than this shows those with the most mistakes; the table has all."""
COUNTS_UP_TO = 12
FEWEST_LINES = 3


def outcome_charts(
    outcome: Outcome, shares: Mapping[str, Mapping[str, float]]
) -> tuple[Chart, ...]:
    """Return the charts of a run; `shares` is what `importance` found."""
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
    """Draw the validation accuracy of every trial, and the best so far."""
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
    told = [*tip(x, PERCENT, colour), {"field": "seconds", "title": "seconds", "format": ".1f"}]
    told.append({"field": "settings", "title": "with"})
    span = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    step = {"type": "line", "interpolate": "step-after", "color": "var(--soft)"}
    best_so_far = {"field": "best", "type": "quantitative"}
    return Chart(
        "trials",
        "Trials",
        "Accuracy on validation of every trial that finished; the line is the best so far.",
        {
            "height": 260,
            "data": {"values": values},
            "layer": [
                {"mark": step, "encoding": {"x": x, "y": best_so_far}},
                {"mark": {"type": "rule"}, "encoding": {"x": x, **span, "color": colour}},
                {
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                    "encoding": {"x": x, "y": y, "color": colour, "tooltip": told},
                },
            ],
        },
        ("trial", "strategy", "validation accuracy", "seconds", "with"),
        tuple(
            (str(v["trial"]), v["strategy"], percent(v), f"{v['seconds']:.1f}", v["settings"])
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
                **ends(trial.val_accuracy),
                "best": best,
                "settings": ", ".join(pairs(trial.hyperparameters.items())),
                "seconds": trial.seconds,
            }
        )
    return values


def parallel_chart(strategy: str, trials: Sequence[TrialRecord]) -> Chart | None:
    """Draw the trials of a strategy as lines through their hyperparameters."""
    scored = [t for t in trials if t.val_accuracy is not None]
    ranges = varied(scored)
    if len(scored) < FEWEST_LINES or not ranges:
        return None
    names = [*ranges, "validation accuracy"]
    reached = [t.val_accuracy.mid for t in scored if t.val_accuracy is not None]
    low, spread = min(reached), max(max(reached) - min(reached), 1e-9)
    values: list[Row] = []
    for trial, accuracy in zip(scored, reached, strict=True):
        place = (accuracy - low) / spread
        said = {n: trial.hyperparameters[n] for n in ranges}
        told = ", ".join([*pairs(said.items()), f"validation accuracy {100 * accuracy:.1f}%"])
        at = {n: _place(trial.hyperparameters[n], ranges[n]) for n in ranges}
        for name in names:
            spot = place if name == "validation accuracy" else at[name]
            values.append(
                {"trial": trial.number, "what": name, "place": spot, "good": place, "told": told}
            )
    line = {
        "x": {
            "field": "what",
            "type": "ordinal",
            "title": None,
            "sort": names,
            "axis": {"labelAngle": -20, "labelLimit": 110, "grid": True},
            "scale": {"padding": 0.1},
        },
        "y": {
            "field": "place",
            "type": "quantitative",
            "title": "Least to largest of those tried",
            "axis": {"values": [0, 1], "labelExpr": "datum.value ? 'most' : 'least'"},
        },
        "detail": {"field": "trial"},
        "opacity": {
            "field": "good",
            "type": "quantitative",
            "scale": {"domain": [0, 1], "range": [0.15, 1]},
            "legend": None,
        },
        "tooltip": [{"field": "trial"}, {"field": "told", "title": "with"}],
    }
    mark = {"type": "line", "strokeWidth": 2, "color": "var(--c0)", "point": True}
    return Chart(
        f"parallel-{strategy}",
        f"{title(strategy)}: what was tried",
        "A line is a trial; the darker, the better it did.",
        {"height": 230, "data": {"values": values}, "layer": [{"mark": mark, "encoding": line}]},
        (),
        (),
    )


def _place(value: object, kind: object) -> float:
    """Place a value between 0, the least of its range, and 1."""
    if isinstance(kind, FloatDistribution | IntDistribution):
        ends_of = (kind.low, kind.high, float(str(value)))
        low, high, at = np.log(ends_of) if kind.log else ends_of
        return float((at - low) / (high - low))
    assert isinstance(kind, CategoricalDistribution)
    choices = [str(choice) for choice in kind.choices]
    return choices.index(str(value)) / (len(choices) - 1)


def importance_chart(strategy: str, shares: Mapping[str, float]) -> Chart:
    """Draw how much of the spread of validation accuracy each hyperparameter explains."""
    values = [{"name": name, "mid": share} for name, share in shares.items()]
    return Chart(
        f"importance-{strategy}",
        f"{title(strategy)}: what mattered",
        "Share of the spread of validation accuracy that a hyperparameter explains (fANOVA). "
        "With few trials this is rough.",
        {
            "height": 26 * len(values),
            "data": {"values": values},
            "layer": [
                {
                    "mark": {"type": "bar", "color": "var(--c0)", "height": 12},
                    "encoding": {
                        "y": {"field": "name", "type": "nominal", "title": None, "sort": None},
                        "x": {**x_axis("Share", PERCENT), "scale": {"domain": [0, 1]}},
                        "tooltip": [{"field": "name"}, {"field": "mid", "format": PERCENT}],
                    },
                }
            ],
        },
        ("hyperparameter", "share"),
        tuple((name, f"{100 * share:.1f}%") for name, share in shares.items()),
    )


def calibration_chart(test: Evaluation) -> Chart | None:
    """Draw how often the classifier is right when it says that it is so sure."""
    if not test.calibration:
        return None
    values = [{"sure": b.confidence, "n": b.n, **ends(b.accuracy)} for b in test.calibration]
    x = {**x_axis("Said: probability of the likeliest class", PERCENT), "field": "sure"}
    y = y_axis("Found: share that was right", PERCENT)
    ideal = {"values": [{"a": 0, "b": 0}, {"a": 1, "b": 1}]}
    even = {
        "x": {"field": "a", "type": "quantitative"},
        "y": {"field": "b", "type": "quantitative"},
    }
    span = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    told = [{"field": "sure", "title": "said", "format": PERCENT}, *tip(x, PERCENT)[1:]]
    told.append({"field": "n", "title": "images"})
    dashed = {"type": "line", "strokeDash": [3, 3], "color": "var(--soft)", "clip": True}
    dot = {"type": "point", "filled": True, "size": 60, "color": "var(--c0)", "opacity": 1}
    return Chart(
        "calibration",
        "Can its probabilities be believed?",
        f"On the dashed line they can. Mean gap: {100 * test.calibration_error:.1f} points.",
        {
            "height": 260,
            "layer": [
                {"data": ideal, "mark": dashed, "encoding": even},
                {
                    "data": {"values": values},
                    "mark": {"type": "rule", "color": "var(--c0)", "strokeWidth": 2},
                    "encoding": {"x": x, **span},
                },
                {
                    "data": {"values": values},
                    "mark": dot,
                    "encoding": {"x": x, "y": y, "tooltip": told},
                },
            ],
        },
        ("said", "found", "images"),
        tuple((f"{100 * v['sure']:.1f}%", percent(v), str(v["n"])) for v in values),
    )


def classes_chart(test: Evaluation) -> Chart:
    """Draw the accuracy within every class, worst first."""
    known = [(n, a) for n, a in zip(test.classes, test.per_class, strict=True) if a is not None]
    worst = sorted(known, key=lambda pair: pair[1].mid)[:MOST_CLASSES]
    values = [{"class": name, **ends(accuracy)} for name, accuracy in worst]
    few = "" if len(worst) == len(known) else f" The {MOST_CLASSES} worst of {len(known)}."
    return Chart(
        "classes",
        "Accuracy by class",
        f"Of the test images of a class, the share that is named rightly; worst first.{few}",
        {
            "height": 22 * len(values),
            "data": {"values": values},
            "layer": bars(x_axis("Accuracy", PERCENT), PERCENT, "class", 110),
        },
        ("class", "accuracy"),
        tuple((v["class"], percent(v)) for v in values),
    )


def confusion_chart(test: Evaluation) -> Chart:
    """Draw what was taken for what."""
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
        "title": "Taken for",
        "axis": {**axis, "labelAngle": -45},
    }
    y = {"field": "true", "type": "nominal", "sort": names, "title": "Is", "axis": axis}
    shade = {
        "field": "dark",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": [0.06, 1]},
        "legend": None,
    }
    colour = {"condition": {"test": "datum.right", "value": "var(--c0)"}, "value": "var(--c1)"}
    told = [
        {"field": "true", "title": "is"},
        {"field": "taken", "title": "taken for"},
        {"field": "n", "title": "images"},
    ]
    layers: list[Row] = [
        {"mark": "rect", "encoding": {"x": x, "y": y, "color": colour, "opacity": shade}}
    ]
    layers[0]["encoding"]["tooltip"] = told
    if len(names) <= COUNTS_UP_TO:
        ink = {"condition": {"test": "datum.dark > 0.5", "value": "var(--paper)"}}
        count = {"text": {"field": "n"}, "color": {**ink, "value": "var(--ink)"}, "tooltip": told}
        layers.append({"mark": {"type": "text"}, "encoding": {"x": x, "y": y, **count}})
    few = (
        ""
        if len(names) == len(test.classes)
        else (f" Shown: the {len(names)} of {len(test.classes)} classes with the most mistakes.")
    )
    return Chart(
        "confusion",
        "What was taken for what",
        f"Test images: rows are what they are, columns what they were taken for.{few}",
        {"height": 26 * len(names), "data": {"values": values}, "layer": layers},
        ("is", "taken for", "images"),
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
    """Draw what pretraining brought to every class."""
    found = outcome.transfer_gain
    if found is None or not found.per_class:
        return None
    ranked = sorted(found.per_class, key=lambda c: c.gain.mid)
    values = [{"class": c.name, "n": c.n, **ends(c.gain)} for c in ranked]
    shown = values if len(values) <= MOST_CLASSES else values[:10] + values[-10:]
    zero: Row = {"data": {"values": [{"zero": 0}]}}
    zero["mark"] = {"type": "rule", "color": "var(--soft)"}
    zero["encoding"] = {"x": {"field": "zero", "type": "quantitative"}}
    rows = bars(x_axis("Gain in accuracy", PERCENT), PERCENT, "class", 110)
    few = (
        "" if len(shown) == len(values) else " The ten that gain least and the ten that gain most."
    )
    return Chart(
        "gain",
        "What pretraining brought to each class",
        f"Accuracy minus that of {found.control}, on the same {found.n:,} images; all together "
        f"{points(found.gain)}: {found.verdict}.{few}",
        {"height": 22 * len(shown), "data": {"values": shown}, "layer": [zero, *rows]},
        ("class", "gain"),
        tuple((c.name, points(c.gain)) for c in ranked),
    )
