"""Short terminal report of an advice: what to do, why, how sure; the full one is `terminal`."""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from advisor.report.frontier import HEADING, pick_rows
from advisor.report.terminal import heading, section
from advisor.report.words import limit_words, needs_words, runner_up, size_line
from advisor.types.advice import Advice, Recommendation
from advisor.types.durations import duration
from strategies.core.metrics import LEVEL

MAX_SENTENCES = 3
"""Sentences of the section Why."""
MAX_FINDINGS = 4
MAX_STRATEGIES = 10
MAX_LEFT_OUT = 3
MAX_PICKS = 6
"""Rows of the section on what one gets in a given time."""
_RECOMMENDED = ("Recommended. ", "; tl-auto run tunes and saves it.")
"""Start and end of the line on one fit. Where the line says the memory too, there is no room for
them."""
_NAMED_BY_VALUE = ("backbone", "device")
"""Choices whose value says what it is."""


def print_brief(console: Console, advice: Advice) -> None:
    """Print the short report: at most 45 lines at 80 columns."""
    console.print(
        heading(advice),
        *_facts(advice),
        *section("Why", _why(advice)),
        *section("Strategies", _strategies(advice)),
        *section(HEADING, _frontier(advice)),
        *_findings(advice),
        Text(""),
        *(_one_line(line) for line in _ends(advice)),
        sep="\n",
    )


def ranking_so_far(ranking: Sequence[Recommendation]) -> RenderableType:
    """Return the table of strategies, before the findings have been checked."""
    title = Text("Ranking so far; what may change it is still being checked.", style="dim")
    return Group(title, Padding(_ranked(ranking, is_void=False), (0, 0, 0, 2)))


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _facts(advice: Advice) -> Iterator[Text]:
    """Yield the time of a fit, unless the advice is void, and the size of the dataset."""
    seconds, limit = duration(advice.best.seconds.mid), limit_words(advice)
    needs = "" if advice.device_bytes is None else needs_words(advice)
    if advice.void is None and limit is None:
        start, end = ("", ". Next: tl-auto run.") if needs else _RECOMMENDED
        yield Text(f"{start}One fit takes about {seconds}{needs}{end}")
    elif advice.void is None:
        yield Text(f"{limit} It takes about {seconds}{needs}.")
    yield Text(size_line(advice, with_split=False))


def _why(advice: Advice) -> RenderableType | None:
    """Return the first reasons for the recommendation; a void one has none."""
    if advice.void is not None:
        return None
    second = runner_up(advice)
    sentences = [*advice.best.reasons, *([] if second is None else [f"Runner-up: {second}"])]
    table = Table.grid(padding=(0, 1))
    for sentence in sentences[:MAX_SENTENCES]:
        table.add_row("-", Text(sentence))
    return table


def _strategies(advice: Advice) -> RenderableType:
    ranking = advice.recommendations
    lines = [_more(len(ranking) - MAX_STRATEGIES)]
    if any(not r.cases for r in ranking):
        lines.append("assumed: no benchmark cases yet, so it is ranked after the others")
    if advice.rejections:
        lines.append(_left_out([r.strategy for r in advice.rejections]))
    table = _ranked(ranking, is_void=advice.void is not None)
    return Group(table, *(_one_line(line) for line in lines if line))


def _ranked(ranking: Sequence[Recommendation], *, is_void: bool) -> Table:
    """Return the table of the first strategies; the best one stands out unless it is void."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for name in ("", "strategy", "expected accuracy"):
        table.add_column(name, no_wrap=True)
    table.add_column("input", justify="right", no_wrap=True)
    table.add_column("fit time", justify="right", no_wrap=True)
    table.add_column("accuracy is", no_wrap=True)
    for number, r in enumerate(ranking[:MAX_STRATEGIES], start=1):
        estimates = (r.accuracy.percent(), f"{r.input_px} px", duration(r.seconds.mid))
        style = "bold" if number == 1 and not is_void else ""
        table.add_row(str(number), r.strategy, *estimates, _basis(r), style=style)
    return table


def _frontier(advice: Advice) -> RenderableType | None:
    """Return the best option for several times, a line each; a void advice has none."""
    rows = pick_rows(advice, MAX_PICKS)
    if advice.void is not None or not rows:
        return None
    table = Table.grid(padding=(0, 2))
    for align in ("left", "left", "right", "left", "left"):
        table.add_column(justify=align, no_wrap=True)
    for row in rows:
        pick = row.pick
        estimates = (pick.accuracy.percent(), f"in about {duration(pick.seconds.mid)}")
        table.add_row(row.time, pick.strategy, f"{pick.input_px} px", *estimates)
    return table


def _left_out(strategies: Sequence[str]) -> str:
    names = ", ".join(strategies[:MAX_LEFT_OUT])
    n_more = len(strategies) - MAX_LEFT_OUT
    return f"left out: {names}{f' and {n_more} more' if n_more > 0 else ''}; why: --full"


def _basis(recommendation: Recommendation) -> str:
    """Return what an expected accuracy rests on."""
    if not recommendation.cases:
        return "assumed"
    return "measured" if recommendation.measured else "predicted"


def _findings(advice: Advice) -> tuple[RenderableType, ...]:
    """Return the issues, one line each, and how much more there is."""
    issues = sorted(
        (f for f in advice.findings if f.severity == "issue" and f is not advice.void),
        key=lambda f: not f.voids_advice,
    )
    n_tips = sum(f.severity == "tip" for f in advice.findings)
    tips = f"{n_tips} tip{'' if n_tips == 1 else 's'}: --full" if n_tips else ""
    if not issues:
        none = "no issues" if advice.void is None else "no other issues"
        return (Text.assemble(("\nFindings: ", "bold"), _listed(none, tips)),)
    rest = _listed(_more(len(issues) - MAX_FINDINGS), tips)
    lines = [f"{f.code} {f.title}" for f in issues[:MAX_FINDINGS]] + ([rest] if rest else [])
    return section("Findings", Group(*(_one_line(line) for line in lines)))


def _listed(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _more(n: int) -> str:
    return f"and {n} more: --full" if n > 0 else ""


def _ends(advice: Advice) -> Iterator[str]:
    """Yield what was chosen automatically, and where the rest is."""
    chosen = [
        c.value.split(" (")[0] if c.name in _NAMED_BY_VALUE else f"{c.name} {c.value}"
        for c in advice.choices
    ]
    if chosen:
        yield f"Chosen for you: {', '.join(chosen)}"
    yield (
        f"Intervals are {100 * LEVEL:.0f}% intervals; measured in {duration(advice.seconds)}, "
        f"seed {advice.seed}."
    )
    yield "The rest, with the reasons for every choice: --full, or --html FILE with charts."
