"""Markdown report of an advice, and the elements of Markdown that the model card shares."""

import re
from collections.abc import Iterable, Sequence

from advisor.report.frontier import HEADING, pick_rows
from advisor.report.to_json import versions
from advisor.report.words import (
    DISPLAY,
    baseline_words,
    break_even_words,
    metric_name,
    no_cases_words,
    pretraining_words,
    settings,
    similarity_words,
    size_line,
    statistics_words,
    void_words,
    why,
)
from advisor.types.advice import Advice, Finding
from advisor.types.durations import duration
from advisor.types.profile import Profile
from strategies.core.metrics import LEVEL, Interval

_MOST_EXAMPLES = 5


def advice_markdown(advice: Advice) -> str:
    """Return the report of an advice as Markdown; text from the data is escaped."""
    best, void, profile = advice.best, advice.void, advice.profile
    releases = ", ".join(f"{name} {number}" for name, number in versions().items())
    parts = [
        f"# {escape(advice.dataset)}: {best.strategy if void is None else escape(void.title)}",
        "" if void is None else bullets(void_words(void)),
        escape(size_line(advice)),
        "## Why",
        bullets(why(advice)),
        "## All strategies",
        table(
            (
                "",
                "strategy",
                "expected accuracy",
                "input",
                "predicted time of one fit",
                "hyperparameters",
            ),
            [
                (
                    str(i),
                    r.strategy,
                    r.accuracy.percent(),
                    f"{r.input_px} px",
                    _seconds(r.seconds),
                    settings(r.hyperparameters),
                )
                for i, r in enumerate(advice.recommendations, start=1)
            ],
        ),
        no_cases_words(advice) or "",
        bullets(f"Left out: {r.strategy}: {r.reason}" for r in advice.rejections),
        *_frontier(advice),
        *_backbones(advice),
        "## Measurements",
        f"Size: {advice.quadrant.size}. Domain: {advice.quadrant.domain}, "
        f"{similarity_words(profile.similarity)}; {profile.similarity.n_images:,} images.",
        _sentence(pretraining_words(profile)),
        _depth_table(profile),
        bullets([*_backbone(profile), *_other_measurements(advice), *_risks(advice)]),
        "## Findings",
        "\n\n".join(finding_text(f) for f in advice.findings) or "None.",
        "## Reproduce",
        code(advice.command),
        bullets([*(f"{c.name}: {c.value} ({c.source})" for c in advice.choices), releases]),
        f"Intervals are {100 * LEVEL:.0f}% intervals. Measured in {duration(advice.seconds)}; "
        f"seed {advice.seed}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Escape the markup characters of Markdown and HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|&!~])", r"\\\1", text).replace("\n", " ")


def _sentence(clause: str | None) -> str:
    """Return a clause as an escaped sentence; empty without one."""
    return "" if clause is None else f"{escape(clause[0].upper() + clause[1:])}."


def _backbone(profile: Profile) -> list[str]:
    rows = statistics_words(profile.backbone_statistics)
    return [f"Backbone, {name}: {value} {details}" for name, value, details in rows]


def _other_measurements(advice: Advice) -> list[str]:
    profile = advice.profile
    lines = [f"Linear probe (softmax, penultimate): {profile.linear_probe.accuracy.percent()}"]
    if profile.knn is not None:
        lines.append(f"k-NN accuracy (penultimate): {profile.knn.percent()}")
    if profile.pixel_probe is not None:
        lines.append(
            "Pixel baseline (linear classifier on grayscale thumbnails): "
            f"{profile.pixel_probe.percent()}"
        )
    if profile.transfer_gain is not None:
        lines.append(
            f"Transfer gain of probes over random weights: {profile.transfer_gain.points()}"
        )
    for name, score in profile.transferability.items():
        lines.append(f"{metric_name(name)}: {score.text()} ({DISPLAY})")
    if profile.curve is not None:
        for n, accuracy in profile.curve.extrapolated:
            lines.append(
                f"Learning curve at {n:,.0f} images per class (extrapolated): {accuracy.percent()}"
            )
    return lines


def _risks(advice: Advice) -> list[str]:
    return [
        f"Probability of negative transfer, {r.strategy}: {100 * r.probability:.0f}% "
        f"(predicted gain over from_scratch {r.gain.points()}{break_even_words(r)})"
        for r in advice.risks
    ]


def _depth_table(profile: Profile) -> str:
    statistics = profile.backbone_statistics
    shifts = () if statistics is None else statistics.per_depth
    random = {p.depth: p.accuracy.percent() for p in profile.random_probes if p.depth}
    svms = {p.depth: p for p in profile.probes if p.loss == "squared_hinge"}
    rows = []
    for depth, name in enumerate(profile.depth_names, start=1):
        shift = shifts[depth - 1] if shifts else None
        row = [f"{depth} {name}", "" if shift is None else shift.text()]
        row.append(svms[depth].accuracy.percent())
        rows.append((*row, random.get(depth, "not measured")))
    columns = (
        "depth",
        "BatchNorm shift (nats)",
        "linear SVM accuracy",
        "linear SVM accuracy with random weights",
    )
    return table(columns, rows)


def _frontier(advice: Advice) -> tuple[str, ...]:
    """Return heading and table of the best option for several times."""
    rows = pick_rows(advice)
    if not rows:
        return ()
    columns = ("time", "strategy", "input", "expected accuracy", "predicted time of one fit")
    cells = [
        (
            row.time,
            row.pick.strategy,
            f"{row.pick.input_px} px",
            row.pick.accuracy.percent(),
            _seconds(row.pick.seconds),
        )
        for row in rows
    ]
    return (f"## {HEADING}", table(columns, cells))


def _backbones(advice: Advice) -> tuple[str, ...]:
    """Return heading and table of the compared backbones, if several were given."""
    if not advice.backbones:
        return ()
    columns = ("rank", "backbone", "linear probe accuracy", "gap to the best", "ms per image")
    rows = [
        (
            str(b.rank),
            b.name,
            b.accuracy.percent(),
            "" if b.behind_best is None else b.behind_best.points(),
            f"{b.ms_per_image:.1f}",
        )
        for b in advice.backbones
    ]
    return ("## Backbones", table(columns, rows), escape(baseline_words(advice)))


def finding_text(finding: Finding) -> str:
    """Return a finding with its action and some examples."""
    lines = [f"**{finding.code} {finding.severity}: {escape(finding.title)}**"]
    lines += [escape(finding.detail), f"Action: {escape(finding.action)}"]
    if finding.examples:
        lines.append("Examples: " + "; ".join(map(escape, finding.examples[:_MOST_EXAMPLES])))
    return "  \n".join(lines)


def _seconds(seconds: Interval) -> str:
    ends = f"[{duration(seconds.low)}, {duration(seconds.high)}]"
    return f"{duration(seconds.mid)} {ends}"


def bullets(lines: Iterable[str]) -> str:
    """Return escaped lines as a list."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; its cells are escaped."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(escape, row)) + " |" for row in rows])


def code(text: str) -> str:
    """Return text as a block of code."""
    fence = "`" * (3 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
