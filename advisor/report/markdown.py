"""Advice and outcome as Markdown, and the model card of a classifier: the facts of the JSON."""

import re
from collections.abc import Iterable, Sequence

from advisor.report.to_json import versions
from advisor.report.words import (
    backbone_used,
    crossing_words,
    duration,
    pairs,
    points,
    result,
    settings,
    similarity_words,
    size_line,
    soup_words,
    transfer_words,
    why,
)
from advisor.types.advice import Advice, Finding
from advisor.types.outcome import Outcome
from advisor.types.profile import Profile, loss_words
from strategies.core.metrics import LEVEL, Interval
from strategies.models.catalogue import CATALOGUE

_MOST_EXAMPLES = 5


def advice_markdown(advice: Advice) -> str:
    """Return the whole report as Markdown; what comes from the data is escaped."""
    best, profile = advice.best, advice.profile
    releases = ", ".join(f"{name} {number}" for name, number in versions().items())
    parts = [
        f"# {escape(advice.dataset)}: {best.strategy}",
        escape(size_line(advice)),
        "## Why",
        _list(why(advice)),
        "## All strategies",
        _table(
            ("", "strategy", "accuracy", "time of one fit", "starts with"),
            [
                (
                    str(i),
                    r.strategy,
                    r.accuracy.percent(),
                    _seconds(r.seconds),
                    settings(r.hyperparameters),
                )
                for i, r in enumerate(advice.recommendations, start=1)
            ],
        ),
        _list(f"Not considered: {r.strategy}: {r.reason}" for r in advice.rejections),
        *_backbones(advice),
        "## What was measured",
        f"Size: {advice.quadrant.size}. Domain: {advice.quadrant.domain}, "
        f"{similarity_words(profile.similarity)}.",
        _depth_table(profile),
        _list([*_other_measurements(profile), *_risks(advice)]),
        "## Findings",
        "\n\n".join(_finding(f) for f in advice.findings) or "None.",
        "## How to get this again",
        _code(advice.command),
        _list([*(f"{c.name}: {c.value} ({c.source})" for c in advice.choices), releases]),
        f"Intervals are {100 * LEVEL:.0f}% intervals. Measured in {duration(advice.seconds)}; "
        f"seed {advice.seed}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def outcome_markdown(outcome: Outcome) -> str:
    """Return what a run found as Markdown."""
    facts = [*_judgement(outcome), f"Took {duration(outcome.seconds)}."]
    rows = [
        (
            str(t.number),
            t.strategy,
            "" if t.val_accuracy is None else t.val_accuracy.percent(),
            duration(t.seconds),
            t.reason or ", ".join(pairs(t.hyperparameters.items())),
        )
        for t in outcome.trials
    ]
    columns = (
        "trial",
        "strategy",
        "validation accuracy",
        "time",
        "with, or why there is no score",
    )
    title = f"# {escape(outcome.advice.dataset)}: {result(outcome)}"
    return "\n\n".join([title, _list(facts), "## Trials", _table(columns, rows)]) + "\n"


def model_card(outcome: Outcome) -> str:
    """Return what a person must know before using the classifier: a model card in Markdown.

    References
    ----------
    M. Mitchell et al., Model cards for model reporting, 2019.
    """
    advice, best, test = outcome.advice, outcome.best, outcome.test
    classes = list(advice.profile.n_by_class.items())
    judged = {} if test is None else dict(zip(test.classes, test.per_class, strict=True))
    rows = []
    for name, n in classes:
        found = judged.get(name)
        rows.append((name, f"{n:,}", "not judged" if found is None else found.percent()))
    fitted = ", ".join(pairs(best.hyperparameters.items()))
    licence = _licence(outcome)
    parts = [
        f"# Image classifier: {escape(advice.dataset)}",
        _list(
            [
                f"What it does: names one of {len(classes)} classes for an image.",
                f"How it was made: {best.strategy} on {backbone_used(outcome)} at "
                f"{advice.profile.input_px} px with {fitted}.",
                *([] if licence is None else [f"Licence of the pretrained weights: {licence}."]),
                f"Made by tl-advisor, seed {advice.seed}; "
                + ", ".join(f"{name} {number}" for name, number in versions().items()),
            ]
        ),
        "## Data",
        escape(size_line(advice)) + ".",
        "## How well it does",
        _list(_judgement(outcome)),
        _table(("class", "images to learn from", "test accuracy"), rows),
        "## Limits",
        "It names one of its classes for every image, also for images of none of them. Its "
        "accuracy holds for images like those of test. The data gave rise to these remarks:",
        "\n\n".join(_finding(f) for f in advice.findings) or "None.",
        "## Use",
        _code("tl-auto predict RUN_FOLDER PICTURE_OR_FOLDER"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Escape what Markdown and HTML would take for markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|&!~])", r"\\\1", text).replace("\n", " ")


def _judgement(outcome: Outcome) -> list[str]:
    test, val = outcome.test, outcome.best.val_accuracy
    said = []
    if test is not None:
        said.append(f"Test accuracy {test.accuracy.percent()} on {test.n:,} images.")
        if test.top_5 is not None:
            said.append(f"Among the five likeliest: {test.top_5.percent()}.")
        said.append(f"Mean of the classes' accuracies {100 * test.mean_per_class:.1f}%.")
        said.append(f"Calibration error {100 * test.calibration_error:.1f} points.")
    else:
        said.append("There were no test images: its accuracy on new images is not known.")
    if val is not None:
        said.append(
            f"Validation accuracy, by which (and by the advice) it was selected, {val.percent()}."
        )
    if outcome.transfer_gain is not None:
        said.append(f"Transfer gain {transfer_words(outcome.transfer_gain)}.")
    averaged = soup_words(outcome)
    if averaged is not None:
        said.append(averaged)
    if outcome.refitted:
        said.append("Fitted once more on train and validation together.")
    return said


def _other_measurements(profile: Profile) -> list[str]:
    said = [f"Linear probe (softmax, penultimate): {profile.linear_probe.accuracy.percent()}"]
    if profile.knn is not None:
        said.append(f"Nearest neighbours: {profile.knn.percent()}")
    if profile.pixel_probe is not None:
        said.append(f"Brightness alone (grey thumbnails): {profile.pixel_probe.percent()}")
    if profile.transfer_gain is not None:
        said.append(f"Pretraining brings {points(profile.transfer_gain)} over random weights")
    if profile.pilot is not None:
        for name, gain, loss in (
            ("Pilot fine-tuning", profile.pilot.gain, profile.pilot.loss_gain),
            ("Layer SVM", profile.pilot.svm_gain, profile.pilot.svm_loss_gain),
        ):
            said.append(f"{name} over a probe on the same: {points(gain)}, {loss_words(loss)}")
    for name, score in profile.transferability.items():
        said.append(f"{name}: {_ends(score, 3)}")
    if profile.curve is not None:
        for n, accuracy in profile.curve.extrapolated:
            said.append(f"With {n:,.0f} images per class (extrapolated): {accuracy.percent()}")
    return said


def _risks(advice: Advice) -> list[str]:
    return [
        f"Chance that training from scratch beats {r.strategy}: {100 * r.probability:.0f}% "
        f"(predicted gain from pretraining {points(r.gain)}{crossing_words(r)})"
        for r in advice.risks
    ]


def _depth_table(profile: Profile) -> str:
    shifts = profile.similarity.per_depth if profile.similarity else ()
    random = {p.depth: p.accuracy.percent() for p in profile.random_probes if p.depth}
    svms = {p.depth: p for p in profile.probes if p.loss == "squared_hinge"}
    rows = []
    for depth, name in enumerate(profile.depth_names, start=1):
        shift = shifts[depth - 1] if shifts else None
        row = [f"{depth} {name}", "" if shift is None else _ends(shift, 3)]
        row.append(svms[depth].accuracy.percent())
        rows.append((*row, random.get(depth, "not measured")))
    columns = ("depth", "shift (nats)", "probe accuracy (SVM)", "the same with random weights")
    return _table(columns, rows)


def _backbones(advice: Advice) -> tuple[str, ...]:
    """Return heading and table of the backbones that were compared, if any."""
    if not advice.backbones:
        return ()
    columns = ("rank", "backbone", "linear probe", "behind the best", "ms an image")
    rows = [
        (
            str(b.rank),
            b.name,
            b.accuracy.percent(),
            "" if b.behind_best is None else points(b.behind_best),
            f"{b.ms_per_image:.1f}",
        )
        for b in advice.backbones
    ]
    return ("## Backbones", _table(columns, rows))


def _finding(finding: Finding) -> str:
    lines = [f"**{finding.code} {finding.severity}: {escape(finding.title)}**"]
    lines += [escape(finding.detail), f"Do: {escape(finding.action)}"]
    if finding.examples:
        lines.append("Such as " + "; ".join(map(escape, finding.examples[:_MOST_EXAMPLES])))
    return "  \n".join(lines)


def _seconds(seconds: Interval) -> str:
    ends = f"[{duration(seconds.low)}, {duration(seconds.high)}]"
    return f"{duration(seconds.mid)} {ends}"


def _ends(interval: Interval, digits: int) -> str:
    low, mid, high = (f"{v:.{digits}f}" for v in (interval.low, interval.mid, interval.high))
    return f"{mid} [{low}, {high}]"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(escape, row)) + " |" for row in rows])


def _code(text: str) -> str:
    fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _licence(outcome: Outcome) -> str | None:
    """Return the licence of the weights that were used, where it was asked for or is known."""
    used = backbone_used(outcome)
    if used != outcome.advice.profile.backbone:
        return CATALOGUE[used].licence if used in CATALOGUE else None
    found = (c.value for c in outcome.advice.choices if c.name == "weights' licence")
    return next(found, None)
