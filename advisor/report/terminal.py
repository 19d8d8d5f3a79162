"""Advice, outcome and predictions on a terminal: 80 columns, readable without colour."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.similarity import DomainSimilarity
from advisor.types import Advice, Finding, Outcome, ProbeResult, Profile
from strategies.core.metrics import LEVEL

_BAR = 20
_EXAMPLES = 2
_LOOKALIKES = 3


def print_advice(console: Console, advice: Advice) -> None:
    """Print the whole report."""
    console.print(
        _headline(advice),
        *_section("Why", _why(advice)),
        *_section("All strategies", _strategies(advice)),
        *_section("What was measured", _measured(advice)),
        *_section("Findings", _findings(advice.findings)),
        *_section("Chosen for you", _choices(advice)),
        Text(
            f"\nIntervals are {100 * LEVEL:.0f}% intervals. Measured in {advice.seconds:.0f} s; "
            f"seed {advice.seed}."
        ),
        sep="\n",
    )


def headline(advice: Advice) -> str:
    """Return the answer in one line."""
    best = advice.best
    return (
        f"{best.strategy}: expect {best.accuracy.percent()} accuracy, "
        f"about {duration(best.seconds.mid)} to fit"
    )


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print what a run found, and how to use it."""
    best = outcome.best
    test = outcome.test
    said = (
        "no test pictures" if test is None else f"{test.accuracy.percent()} on {test.n} pictures"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row("best strategy", Text(best.strategy, style="bold"))
    facts.add_row("test accuracy", Text(said, style="bold"))
    if test is not None:
        facts.add_row("mean per class", f"{100 * test.mean_per_class:.1f}%")
        facts.add_row("calibration error", f"{100 * test.calibration_error:.1f} points")
    if best.val_accuracy is not None:
        facts.add_row("val accuracy", best.val_accuracy.percent())
    facts.add_row("hyperparameters", ", ".join(_pairs(best.hyperparameters.items())))
    if outcome.refitted:
        facts.add_row("last fit", "once more on train and val together")
    facts.add_row("took", f"{duration(outcome.seconds)}, {len(outcome.trials)} trials")
    failed = [t for t in outcome.trials if t.reason and not t.reason.startswith("pruned")]
    console.print(
        Text(f"\n{outcome.advice.task}: done", style="bold"),
        Padding(facts, (0, 0, 0, 2)),
        *(Text(f"  trial {t.number} ({t.strategy}) failed: {t.reason}") for t in failed),
        Text(f"\n  use it   tl-auto predict {outcome.folder} IMAGE_OR_FOLDER..."),
        Text(f"  trials   {outcome.folder / 'study.db'} (optuna-dashboard opens it)"),
        sep="\n",
    )


def print_predictions(
    console: Console, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]
) -> None:
    """Print one line a picture: its path, and its likeliest classes with probabilities."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("picture", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("then")
    for path, ranked in rows:
        (name, probability), *others = ranked
        then = ", ".join(f"{other} {100 * p:.0f}%" for other, p in others)
        table.add_row(Text(path), Text(name), f"{100 * probability:.1f}%", Text(then))
    console.print(table)


def duration(seconds: float) -> str:
    """Format seconds for people: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _headline(advice: Advice) -> RenderableType:
    profile = advice.profile
    return Group(
        Text(f"{advice.task}: {advice.best.strategy}", style="bold"),
        Text(
            f"{profile.n} pictures of {profile.n_classes} classes "
            f"({profile.n_per_class:.0f} a class); {advice.split}"
        ),
    )


def _section(title: str, body: RenderableType | None) -> tuple[RenderableType, ...]:
    if body is None:
        return ()
    return (Text(f"\n{title}", style="bold"), Padding(body, (0, 0, 0, 2)))


def _why(advice: Advice) -> RenderableType:
    best = advice.best
    lines = [
        f"Expect {best.accuracy.percent()} accuracy after about "
        f"{duration(best.seconds.mid)} of fitting.",
        *best.reasons,
    ]
    if advice.quadrant.borderline:
        rules = " or ".join(advice.quadrant.candidates)
        lines.append(f"The task lies near a border; the rule of thumb is {rules}.")
    if len(advice.recommendations) > 1:
        second = advice.recommendations[1]
        lines.append(f"Runner-up: {second.strategy}. {second.reasons[-1]}")
    return Group(*(Text(line) for line in lines))


def _strategies(advice: Advice) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    table.add_column("")
    table.add_column("strategy")
    table.add_column("accuracy")
    table.add_column("time", justify="right")
    table.add_column("starts with")
    for number, r in enumerate(advice.recommendations, start=1):
        keys = [(k, v) for k, v in r.hyperparameters.items() if k in _SHOWN]
        table.add_row(
            str(number),
            r.strategy,
            r.accuracy.percent(),
            duration(r.seconds.mid),
            ", ".join(_pairs(keys)),
            style="bold" if number == 1 else "",
        )
    rejected = [Text(f"not considered: {r.strategy}: {r.reason}") for r in advice.rejections]
    return Group(table, *rejected)


_SHOWN = ("strength", "depth", "frozen_stages", "lr", "steps")


def _measured(advice: Advice) -> RenderableType:
    profile = advice.profile
    q = advice.quadrant
    parts: list[RenderableType] = [
        Text(
            f"size        {q.size} ({profile.n_per_class:.0f} a class)\n"
            f"domain      {_domain_words(q.domain, profile.similarity)}"
        )
    ]
    parts += _lookalikes(profile.similarity)
    parts.append(Text("\ndepth                similarity           probe accuracy (SVM)"))
    svms = {p.depth: p for p in profile.probes if p.loss == "squared_hinge"}
    for depth, name in enumerate(profile.depth_names, start=1):
        parts.append(Text(_depth_row(f"{depth} {name}", depth, profile, svms[depth])))
    parts.append(Text(f"  {'all together':<39} {svms[0].accuracy.percent()}"))
    softmax = profile.linear_probe.accuracy.percent()
    parts.append(Text(f"  {'linear probe (softmax, penultimate)':<39} {softmax}"))
    if profile.n_measured < profile.n:
        parts.append(Text(f"  on a sample of {profile.n_measured} pictures"))
    return Group(*parts)


def _domain_words(domain: str, similarity: DomainSimilarity | None) -> str:
    if similarity is None:
        return "unknown: this backbone has no BatchNorm statistics to compare with"
    near, far = similarity.between
    between = [f"as far as {near}" if near else "", f"nearer than {far}" if far else ""]
    where = " and ".join(b for b in between if b)
    s = similarity.score
    return (
        f"{domain} (similarity {s.mid:.2f} [{s.low:.2f}, {s.high:.2f}]"
        + (f"; {where}" if where else "")
        + ")"
    )


def _lookalikes(similarity: DomainSimilarity | None) -> list[RenderableType]:
    """Say what the pretrained network takes the classes for, most agreed first."""
    if similarity is None or similarity.evidence is None:
        return []
    ranked = sorted(similarity.evidence.lands_on, key=lambda c: -c.share.mid)[:_LOOKALIKES]
    said = ", ".join(f"{c.name}: {c.source_class} {100 * c.share.mid:.0f}%" for c in ranked)
    return [Text(f"looks like  {said}")] if ranked else []


def _depth_row(name: str, depth: int, profile: Profile, svm: ProbeResult) -> str:
    if profile.similarity is None:
        shown = " " * _BAR
    else:
        shift = profile.similarity.shift_at(depth)
        shown = "" if shift is None else f"{shift:6.3f} nats away"
    return f"  {name:<18} {shown:<{_BAR}} {svm.accuracy.percent()}"


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


def _pairs(items: Iterable[tuple[str, object]]) -> list[str]:
    return [f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in items]
