"""Advice, outcome and predictions on a terminal: 80 columns, readable without colour."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.report.charts.text import depth_profile, quadrant_map
from advisor.report.to_json import versions
from advisor.report.words import (
    ENDED,
    duration,
    pairs,
    points,
    risk_words,
    settings,
    similarity_words,
    size_line,
    soup_words,
    transfer_words,
    why,
    winner,
)
from advisor.types.advice import Advice, Finding
from advisor.types.outcome import Outcome
from advisor.types.profile import Profile, loss_words
from advisor.types.similarity import DomainSimilarity
from strategies.core.metrics import LEVEL

_EXAMPLES = 2
_LOOKALIKES = 3


def print_advice(console: Console, advice: Advice) -> None:
    """Print the whole report."""
    releases = ", ".join(f"{name} {number}" for name, number in versions().items())
    console.print(
        _headline(advice),
        *_section("Why", _lines(why(advice))),
        *_section("All strategies", _strategies(advice)),
        *_section("Backbones", _backbones(advice)),
        *_section("What was measured", _measured(advice)),
        *_section("Findings", _findings(advice.findings)),
        *_section("Chosen for you", _choices(advice)),
        *_section("How to get this again", _lines((advice.command, releases))),
        Text(
            f"\nIntervals are {100 * LEVEL:.0f}% intervals. Measured in "
            f"{duration(advice.seconds)}; seed {advice.seed}."
        ),
        sep="\n",
    )


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print what a run found, and how to use it."""
    best = outcome.best
    test = outcome.test
    said = "no test images" if test is None else f"{test.accuracy.percent()} on {test.n} images"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("best strategy", Text(winner(outcome), style="bold"))
    facts.add_row("test accuracy", Text(said, style="bold"))
    if test is not None:
        facts.add_row("mean per class", f"{100 * test.mean_per_class:.1f}%")
        facts.add_row("calibration error", f"{100 * test.calibration_error:.1f} points")
    if best.val_accuracy is not None:
        folds = (
            f", by {outcome.n_folds} folds of train and validation" if outcome.n_folds > 1 else ""
        )
        facts.add_row("validation accuracy", best.val_accuracy.percent() + folds)
    facts.add_row("hyperparameters", ", ".join(pairs(best.hyperparameters.items())))
    if outcome.transfer_gain is not None:
        facts.add_row("transfer gain", transfer_words(outcome.transfer_gain))
    if outcome.soup is not None:
        facts.add_row("averaged", Text(soup_words(outcome) or ""))
    if outcome.refitted:
        facts.add_row("last fit", "once more on train and validation together")
    facts.add_row("took", f"{duration(outcome.seconds)}, {len(outcome.trials)} trials")
    facts.add_row("ended", ENDED[outcome.ended])
    failed = [t for t in outcome.trials if t.reason and not t.pruned]
    console.print(
        Text(f"\n{outcome.advice.dataset}: done", style="bold"),
        Padding(facts, (0, 0, 0, 2)),
        *(Text(f"  trial {t.number} ({t.strategy}) failed: {t.reason}") for t in failed),
        Text(f"\n  use it   tl-auto predict {outcome.folder} IMAGE_OR_FOLDER..."),
        Text(f"  report   {outcome.folder / 'report.html'}"),
        Text(f"  trials   optuna-dashboard sqlite:///{outcome.folder / 'study.db'}"),
        sep="\n",
    )


def print_predictions(
    console: Console, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]
) -> None:
    """Print one line an image: its path, and its likeliest classes with probabilities."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("then")
    for path, ranked in rows:
        (name, probability), *others = ranked
        then = ", ".join(f"{other} {100 * p:.0f}%" for other, p in others)
        table.add_row(Text(path), Text(name), f"{100 * probability:.1f}%", Text(then))
    console.print(table)


def _headline(advice: Advice) -> RenderableType:
    return Group(
        Text(
            f"{advice.dataset}: {advice.best.strategy}: expect "
            f"{advice.best.accuracy.percent()} accuracy",
            style="bold",
        ),
        Text(size_line(advice)),
    )


def _section(title: str, body: RenderableType | None) -> tuple[RenderableType, ...]:
    if body is None:
        return ()
    return (Text(f"\n{title}", style="bold"), Padding(body, (0, 0, 0, 2)))


def _lines(lines: Iterable[str]) -> RenderableType:
    return Group(*(Text(line) for line in lines))


def _strategies(advice: Advice) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    table.add_column("")
    table.add_column("strategy")
    table.add_column("accuracy")
    table.add_column("time", justify="right")
    table.add_column("starts with")
    for number, r in enumerate(advice.recommendations, start=1):
        table.add_row(
            str(number),
            r.strategy,
            r.accuracy.percent(),
            duration(r.seconds.mid),
            settings(r.hyperparameters),
            style="bold" if number == 1 else "",
        )
    rejected = [Text(f"not considered: {r.strategy}: {r.reason}") for r in advice.rejections]
    return Group(table, *rejected)


def _backbones(advice: Advice) -> RenderableType | None:
    """Rank the backbones that were compared; those of one rank cannot be told apart."""
    if not advice.backbones:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("", "backbone", "linear probe", "points behind", "an image"):
        table.add_column(name, overflow="fold")
    for b in advice.backbones:
        behind = "" if b.behind_best is None else points(b.behind_best, unit="")
        cost = f"{b.ms_per_image:.0f} ms"
        table.add_row(str(b.rank), Text(b.name), b.accuracy.percent(), behind, cost)
    return table


def _measured(advice: Advice) -> RenderableType:
    profile, quadrant = advice.profile, advice.quadrant
    domain = f"{quadrant.domain}; {similarity_words(profile.similarity)}"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("size", Text(f"{quadrant.size} ({profile.n_per_class:.0f} per class)"))
    facts.add_row("domain", Text(domain if profile.similarity else domain.split("; ")[1]))
    facts.add_row("looks like", Text(_lookalikes(profile.similarity)))
    for name, value in _other_measurements(profile):
        facts.add_row(name, Text(value))
    risks = risk_words(advice)
    if risks is not None:
        facts.add_row("scratch wins", Text(f"chance against {risks}"))
    sample = () if profile.n_measured == profile.n else (_sample(profile),)
    return Group(
        facts,
        Text(""),
        _lines(quadrant_map(advice)),
        Text(""),
        _lines(depth_profile(profile)),
        *sample,
    )


def _other_measurements(profile: Profile) -> list[tuple[str, str]]:
    together = next(p for p in profile.probes if p.loss == "squared_hinge" and p.depth == 0)
    said = [
        ("linear probe", f"{profile.linear_probe.accuracy.percent()} (softmax, penultimate)"),
        ("all depths", f"{together.accuracy.percent()} (SVM)"),
    ]
    if profile.knn is not None:
        said.append(("neighbours", f"{profile.knn.percent()} (nearest, penultimate)"))
    if profile.transfer_gain is not None:
        said.append(("pretraining", f"{points(profile.transfer_gain)} over random weights"))
    for name, score in profile.transferability.items():
        said.append((name, f"{score.mid:.3f} [{score.low:.3f}, {score.high:.3f}]"))
    if profile.pilot is not None:
        pilot = profile.pilot
        said.append(("pilot", f"fine-tuning gained {points(pilot.gain)} over a probe,"))
        said.append(("", loss_words(pilot.loss_gain)))
        said.append(("", f"layer_svm gained {points(pilot.svm_gain)},"))
        said.append(("", loss_words(pilot.svm_loss_gain)))
    if profile.curve is not None and profile.curve.extrapolated:
        n, accuracy = profile.curve.extrapolated[-1]
        said.append(("more data", f"{accuracy.percent()} with {n:,.0f} per class (extrapolated)"))
    return said


def _sample(profile: Profile) -> Text:
    return Text(f"Measured on a sample of {profile.n_measured:,} images.")


def _lookalikes(similarity: DomainSimilarity | None) -> str:
    """Say what the pretrained network takes the classes for, most agreed first."""
    if similarity is None or similarity.evidence is None:
        return "not known: the network has no old head"
    ranked = sorted(similarity.evidence.nearest_source_classes, key=lambda c: -c.share.mid)[
        :_LOOKALIKES
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
            table.add_row("", Text("such as " + ", ".join(f.examples[:_EXAMPLES])))
        table.add_row("", Text(f"-> {f.action}"))
    return table


def _choices(advice: Advice) -> RenderableType | None:
    if not advice.choices:
        return None
    return Group(*(Text(f"{c.name}: {c.value} ({c.source})") for c in advice.choices))
