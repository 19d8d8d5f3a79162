"""Terminal reports of an advice, a run and predictions: 80 columns, readable without colour."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.report.charts.text import depth_profile, quadrant_map
from advisor.report.frontier import HEADING, pick_rows
from advisor.report.to_json import versions
from advisor.report.words import (
    DISPLAY,
    baseline_words,
    final_fit_words,
    metric_name,
    no_cases_words,
    pairs,
    pretraining_words,
    risk_words,
    settings,
    similarity_words,
    size_line,
    soup_words,
    statistics_words,
    transfer_words,
    void_words,
    why,
)
from advisor.types.advice import Advice, Finding
from advisor.types.durations import duration
from advisor.types.outcome import Outcome
from advisor.types.profile import Profile
from advisor.types.similarity import BackboneStatistics
from advisor.types.summary import ENDED, headline, winner
from strategies.core.metrics import LEVEL

MAX_NAME = 24
"""Characters of class names for which predictions keep a column; longer ones may be broken."""
_MOST_EXAMPLES = 2
_MOST_SOURCE_CLASSES = 3


def print_advice(console: Console, advice: Advice) -> None:
    """Print the full report of an advice; `advisor.report.brief` prints the short one."""
    releases = ", ".join(f"{name} {number}" for name, number in versions().items())
    console.print(
        heading(advice),
        Text(size_line(advice)),
        *section("Why", _lines(why(advice))),
        *section("All strategies", _strategies(advice)),
        *section(HEADING, _frontier(advice)),
        *section("Backbones", _backbones(advice)),
        *section("Measurements", _measured(advice)),
        *section("Findings", _findings(advice.findings)),
        *section("Automatic choices", _choices(advice)),
        *section("Reproduce", _lines((advice.command, releases))),
        Text(
            f"\nIntervals are {100 * LEVEL:.0f}% intervals. Measured in "
            f"{duration(advice.seconds)}; seed {advice.seed}."
        ),
        sep="\n",
    )


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print the outcome of a run, and the commands to use it."""
    best = outcome.best
    test = outcome.test
    accuracy = (
        "no test images" if test is None else f"{test.accuracy.percent()} on {test.n} images"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("best strategy", Text(winner(outcome), style="bold"))
    facts.add_row("test accuracy", Text(accuracy, style="bold"))
    if test is not None:
        facts.add_row("balanced accuracy", f"{100 * test.mean_per_class:.1f}%")
        facts.add_row("calibration error (ECE)", f"{100 * test.calibration_error:.1f} points")
    if best.val_accuracy is not None:
        folds = f", {outcome.n_folds}-fold cross-validation" if outcome.n_folds > 1 else ""
        facts.add_row("validation accuracy", best.val_accuracy.percent() + folds)
    facts.add_row("hyperparameters", ", ".join(pairs(best.hyperparameters.items())))
    if outcome.transfer_gain is not None:
        facts.add_row("transfer gain", transfer_words(outcome.transfer_gain))
    if outcome.soup is not None:
        facts.add_row("model soup", Text(soup_words(outcome) or ""))
    if (words := final_fit_words(outcome)) is not None:
        facts.add_row("final fit", words)
    facts.add_row("run time", f"{duration(outcome.seconds)}, {len(outcome.trials)} trials")
    facts.add_row("search ended", ENDED[outcome.ended])
    failed = [t for t in outcome.trials if t.reason and not t.pruned]
    report = outcome.folder / "report.html"
    void = outcome.advice.void
    doubts = () if void is None else (Text(headline(outcome.advice), style="bold red"),)
    console.print(
        Text(f"\n{outcome.advice.dataset}: done", style="bold"),
        *doubts,
        Padding(facts, (0, 0, 0, 2), expand=False),
        *(Text(f"  trial {t.number} ({t.strategy}) failed: {t.reason}") for t in failed),
        Text(f"\n  predict  tl-auto predict {outcome.folder} IMAGE_OR_FOLDER..."),
        *([Text(f"  report   {report}")] if report.is_file() else []),
        Text(f"  trials   optuna-dashboard sqlite:///{outcome.folder / 'study.db'}"),
        sep="\n",
    )


def print_predictions(
    console: Console,
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    judged: Sequence[tuple[bool, Sequence[str] | None]] = (),
) -> None:
    """Print one line an image: its path, and its likeliest classes with probabilities.

    Parameters
    ----------
    judged
        Whether each image is unknown, and its prediction set, or None. Empty: not judged.
    """
    with_sets = any(inside is not None for _, inside in judged)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    longest = max((len(ranked[0][0]) for _, ranked in rows), default=0)
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold", min_width=min(longest, MAX_NAME))
    table.add_column("%", justify="right")
    for title in ("then", *("unknown",) * bool(judged), *("set",) * with_sets):
        table.add_column(title, overflow="fold")
    for number, (path, ranked) in enumerate(rows):
        (name, probability), *others = ranked
        then = ", ".join(f"{other} {100 * p:.0f}%" for other, p in others)
        cells: list[RenderableType] = [
            Text(path),
            Text(name),
            f"{100 * probability:.1f}",
            Text(then),
        ]
        if judged:
            unknown, inside = judged[number]
            cells.append(Text("unknown" if unknown else "", style="bold"))
            cells += [Text(", ".join(inside or ()))] if with_sets else []
        table.add_row(*cells)
    console.print(table)


def heading(advice: Advice) -> RenderableType:
    """Return the recommendation, or why there is none and what to do first."""
    void = advice.void
    if void is not None:
        title = Text(f"{advice.dataset}: {void.title}", style="bold red")
        return Group(title, *(Text(sentence) for sentence in void_words(void)))
    return Text(
        f"{advice.dataset}: {advice.best.strategy}: expected accuracy "
        f"{advice.best.accuracy.percent()}",
        style="bold",
    )


def section(title: str, body: RenderableType | None) -> tuple[RenderableType, ...]:
    """Return a heading with its indented text; nothing without a text."""
    if body is None:
        return ()
    return (Text(f"\n{title}", style="bold"), Padding(body, (0, 0, 0, 2), expand=False))


def _lines(lines: Iterable[str]) -> RenderableType:
    return Group(*(Text(line) for line in lines))


def _strategies(advice: Advice) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    table.add_column("")
    table.add_column("strategy")
    table.add_column("expected accuracy", no_wrap=True)
    table.add_column("input", justify="right", no_wrap=True)
    table.add_column("fit time", justify="right", no_wrap=True)
    table.add_column("hyperparameters")
    for number, r in enumerate(advice.recommendations, start=1):
        table.add_row(
            str(number),
            r.strategy,
            r.accuracy.percent(),
            f"{r.input_px} px",
            duration(r.seconds.mid),
            settings(r.hyperparameters),
            style="bold" if number == 1 else "",
        )
    rejected = [Text(f"left out: {r.strategy}: {r.reason}") for r in advice.rejections]
    unproven = no_cases_words(advice)
    return Group(table, *([] if unproven is None else [Text(unproven)]), *rejected)


def _frontier(advice: Advice) -> RenderableType | None:
    rows = pick_rows(advice)
    if not rows:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("time", "strategy", "expected accuracy"):
        table.add_column(name)
    for name in ("input", "fit time"):
        table.add_column(name, justify="right")
    for row in rows:
        pick = row.pick
        estimates = (f"{pick.input_px} px", duration(pick.seconds.mid))
        table.add_row(row.time, pick.strategy, pick.accuracy.percent(), *estimates)
    return table


def _backbones(advice: Advice) -> RenderableType | None:
    """Rank the compared backbones; equal ranks do not differ significantly."""
    if not advice.backbones:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("", "backbone", "linear probe", "gap (points)", "per image"):
        table.add_column(name, overflow="fold")
    for b in advice.backbones:
        gap = "" if b.behind_best is None else b.behind_best.points(unit="")
        cost = f"{b.ms_per_image:.0f} ms"
        table.add_row(str(b.rank), Text(b.name), b.accuracy.percent(), gap, cost)
    return Group(table, Text(baseline_words(advice)))


def _measured(advice: Advice) -> RenderableType:
    profile, quadrant = advice.profile, advice.quadrant
    domain = f"{quadrant.domain}; {similarity_words(profile.similarity)}"
    pretraining = pretraining_words(profile)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("size", Text(f"{quadrant.size} ({profile.n_per_class:.0f} per class)"))
    facts.add_row("domain", Text(domain))
    if pretraining is not None:
        facts.add_row("", Text(pretraining))
    facts.add_row("source classes", Text(_source_classes(profile.backbone_statistics)))
    for name, amount, details in statistics_words(profile.backbone_statistics):
        facts.add_row(name, Text(f"{amount} {details}"))
    for name, value in _other_measurements(advice):
        facts.add_row(name, Text(value))
    risks = risk_words(advice)
    if risks is not None:
        facts.add_row("negative transfer", Text(f"probability: {risks}"))
    sample = () if profile.n_measured == profile.n else (_sample(profile),)
    return Group(
        facts,
        Text(""),
        _lines(quadrant_map(advice)),
        Text(""),
        _lines(depth_profile(profile)),
        *sample,
    )


def _other_measurements(advice: Advice) -> list[tuple[str, str]]:
    profile = advice.profile
    all_depths = next(p for p in profile.probes if p.loss == "squared_hinge" and p.depth == 0)
    rows = [
        ("linear probe", f"{profile.linear_probe.accuracy.percent()} (softmax, penultimate)"),
        ("linear SVM", f"{all_depths.accuracy.percent()} (all depths)"),
    ]
    if profile.knn is not None:
        rows.append(("k-NN", f"{profile.knn.percent()} (penultimate)"))
    if profile.transfer_gain is not None:
        gain = f"{profile.transfer_gain.points()} over random weights (best depth)"
        rows.append(("transfer gain", gain))
    for name, score in profile.transferability.items():
        value = f"{score.mid:.3f} [{score.low:.3f}, {score.high:.3f}] ({DISPLAY})"
        rows.append((metric_name(name), value))
    if profile.curve is not None and profile.curve.extrapolated:
        n, accuracy = profile.curve.extrapolated[-1]
        value = f"{accuracy.percent()} at {n:,.0f} images per class (extrapolated)"
        rows.append(("learning curve", value))
    return rows


def _sample(profile: Profile) -> Text:
    return Text(f"Measured on a sample of {profile.n_measured:,} images.")


def _source_classes(statistics: BackboneStatistics | None) -> str:
    """List what the pretrained head predicts for the classes, highest share first."""
    if statistics is None or statistics.head is None:
        return "unknown: the network has no pretrained head"
    ranked = sorted(statistics.head.nearest_source_classes, key=lambda c: -c.share.mid)[
        :_MOST_SOURCE_CLASSES
    ]
    return ", ".join(f"{c.name}: {c.source_class} {100 * c.share.mid:.0f}%" for c in ranked)


def _findings(findings: Sequence[Finding]) -> RenderableType | None:
    if not findings:
        return None
    table = Table.grid(padding=(0, 1))
    for f in findings:
        table.add_row(Text(f.code, style="bold"), Text(f"{f.severity}: {f.title}", style="bold"))
        table.add_row("", Text(f.detail))
        if f.examples:
            table.add_row("", Text("examples: " + ", ".join(f.examples[:_MOST_EXAMPLES])))
        table.add_row("", Text(f"-> {f.action}"))
    return table


def _choices(advice: Advice) -> RenderableType | None:
    if not advice.choices:
        return None
    return Group(*(Text(f"{c.name}: {c.value} ({c.source})") for c in advice.choices))
