"""Short terminal report: at most 45 lines at 80 columns, and the gravest problem first."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from advisor.report.brief import MAX_FINDINGS, print_brief
from advisor.report.html import page
from advisor.report.markdown import advice_markdown
from advisor.report.terminal import print_advice, print_outcome
from advisor.report.words import headline
from advisor.types.advice import Advice, Choice, Finding, Rejection
from tests.advisor.profiles import profile_of
from tests.advisor.report.made import (
    full_profile,
    hostile_advice,
    made_advice,
    made_gallery,
    made_outcome,
)

MAX_LINES, FRONTIER_LINES = 45, 8
"""Room is left for a table of accuracy against cost."""
VOID = Finding(
    "TL004",
    "issue",
    "24.0% of the test images also occur in train",
    "12 exact copies among 50 images: accuracy on test is partly memorisation.",
    "Remove them from train.",
    voids_advice=True,
)


def printed(advice: Advice, width: int = 80) -> str:
    text = io.StringIO()
    print_brief(Console(file=text, width=width, no_color=True), advice)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def crowded(advice: Advice) -> Advice:
    """Return the advice with many findings, choices and rejections."""
    findings = tuple(
        Finding(f"TL{100 + i}", "issue" if i % 3 else "tip", f"problem {i} " * 12, "d " * 90, "a")
        for i in range(20)
    )
    choices = tuple(Choice(f"choice_{i}", "a long value", "why " * 40) for i in range(12))
    rejections = tuple(Rejection(f"strategy_{i}", "reason " * 30) for i in range(8))
    return replace(advice, findings=findings, choices=choices, rejections=rejections)


CROWDED = [
    crowded(made_advice(full_profile(["ants", "bees"]))),
    crowded(made_advice(profile_of(n_classes=136, similarity=0.01), dataset="name " * 20)),
    crowded(hostile_advice()),
    crowded(made_advice(profile_of(n_per_class=5000, similarity=0.7), pilot=None)),
]


@pytest.mark.parametrize("advice", CROWDED)
@pytest.mark.parametrize("is_void", [False, True])
def test_a_crowded_report_leaves_room_on_45_lines_of_80_columns(
    advice: Advice, is_void: bool
) -> None:
    if is_void:
        advice = replace(advice, findings=(VOID, *advice.findings))
    lines = printed(advice).splitlines()
    assert len(lines) <= MAX_LINES - FRONTIER_LINES
    assert max(map(len, lines)) <= 80


def test_the_report_begins_with_what_to_do_and_names_every_strategy() -> None:
    advice = made_advice(full_profile(["ants", "bees"]))
    lines = printed(advice).splitlines()
    assert lines[0].startswith(f"made: {advice.best.strategy}: expected accuracy ")
    assert "One fit takes about " in lines[1]
    assert sum(line.startswith("  - ") for line in lines) == 3
    for recommendation in advice.recommendations:
        assert any(recommendation.accuracy.percent() in line for line in lines)
    assert "--full" in lines[-1]
    assert "--html" in lines[-1]


def test_surplus_issues_and_tips_are_counted() -> None:
    advice = crowded(made_advice(profile_of()))
    lines = printed(advice).splitlines()
    n_issues = sum(f.severity == "issue" for f in advice.findings)
    assert sum(line.startswith("  TL1") for line in lines) == MAX_FINDINGS
    assert f"  and {n_issues - MAX_FINDINGS} more: --full, 7 tips: --full" in lines


def test_a_dataset_without_problems_has_no_list_of_findings() -> None:
    assert "\nFindings: no issues\n" in printed(made_advice(profile_of()))


def test_every_report_begins_with_the_finding_that_voids_the_advice() -> None:
    advice = made_advice(full_profile(["ants", "bees"]), findings=(VOID,))
    best = advice.best.strategy
    full = io.StringIO()
    print_advice(Console(file=full, width=80, no_color=True), advice)
    for text in (printed(advice), full.getvalue(), advice_markdown(advice)):
        plain = text.replace("\\", "").removeprefix("# ")
        assert plain.startswith(f"made: {VOID.title}\n")
        assert plain.index(f"First: {VOID.action}") < plain.index(best)
    assert headline(advice) == f"{VOID.title}; first: {VOID.action}"
    html = page(advice, made_gallery(advice))
    assert f'<h1 id="answer">{VOID.title}</h1>' in html
    assert f"First: {VOID.action}" in html


def test_the_report_of_a_run_says_that_its_advice_was_void() -> None:
    advice = made_advice(full_profile(["ants", "bees"]), findings=(VOID,))
    outcome = made_outcome(advice)
    text = io.StringIO()
    print_outcome(Console(file=text, width=200, no_color=True), outcome)
    assert headline(advice) in text.getvalue()
    assert f"Caution: {VOID.title}." in page(advice, made_gallery(advice), outcome)
