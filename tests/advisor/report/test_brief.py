"""Short terminal report: at most 45 lines at 80 columns, and the gravest problem first."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from advisor.report.brief import MAX_FINDINGS, print_brief
from advisor.report.frontier import HEADING
from advisor.report.html import page
from advisor.report.markdown import advice_markdown
from advisor.report.terminal import print_advice, print_outcome
from advisor.report.words import why
from advisor.types.advice import Advice, Choice, Finding, Rejection
from advisor.types.durations import time_limit
from advisor.types.summary import headline
from strategies.registry import get_strategy
from tests.advisor.profiles import profile_of
from tests.advisor.report.made import (
    full_profile,
    hostile_advice,
    made_advice,
    made_gallery,
    made_outcome,
)

MAX_LINES = 45
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
    assert advice.frontier is not None
    (pick, *_) = advice.frontier.picks
    picks = tuple(replace(pick, time_s=30.0 * (i + 1), input_px=32 * (i + 1)) for i in range(8))
    return replace(
        advice,
        findings=findings,
        choices=choices,
        rejections=rejections,
        frontier=replace(advice.frontier, picks=picks),
    )


CROWDED = [
    crowded(made_advice(full_profile(["ants", "bees"]))),
    crowded(made_advice(profile_of(n_classes=136, similarity=0.01), dataset="name " * 20)),
    crowded(hostile_advice()),
    crowded(made_advice(profile_of(n_per_class=5000, similarity=0.7))),
]


@pytest.mark.parametrize("advice", CROWDED)
@pytest.mark.parametrize("is_void", [False, True])
def test_a_crowded_report_has_at_most_45_lines_of_80_columns(
    advice: Advice, is_void: bool
) -> None:
    if is_void:
        advice = replace(advice, findings=(VOID, *advice.findings))
    lines = printed(advice).splitlines()
    assert len(lines) <= MAX_LINES
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


def section(text: str, heading: str) -> list[str]:
    """Return the lines below a heading, without the indent."""
    return [line.strip() for line in text.split(f"\n{heading}\n")[1].split("\n\n")[0].split("\n")]


def test_the_section_on_times_has_a_line_for_every_change_of_the_pick() -> None:
    advice = made_advice(replace(full_profile(["ants", "bees"]), ms_per_image=200.0))
    assert advice.frontier is not None
    lines = section(printed(advice), HEADING)
    picks = advice.frontier.picks
    changes = {(p.strategy, p.input_px): p for p in reversed(picks)}
    assert len(lines) == len(changes) > 1
    for pick in changes.values():
        assert any(pick.strategy in line and f" {pick.input_px} px " in line for line in lines)
    last = changes[picks[-1].strategy, picks[-1].input_px]
    limit = "no limit" if last.time_s is None else f"{time_limit(last.time_s)} or more"
    assert lines[-1].startswith(limit)


def test_the_section_on_times_is_left_out_where_the_advice_is_void() -> None:
    advice = made_advice(full_profile(["ants", "bees"]))
    assert HEADING not in printed(replace(advice, findings=(VOID,)))
    assert HEADING not in printed(replace(advice, frontier=None))


def test_the_second_line_says_for_which_time_the_advice_is() -> None:
    advice = made_advice(full_profile(["ants", "bees"]))
    for factor, said in (
        (2.0, "The advice is for a fit of at most "),
        (0.5, "The fit is not expected"),
    ):
        limited = replace(advice, time_s=factor * advice.best.seconds.mid)
        assert printed(limited).splitlines()[1].startswith(said)
        assert said in " ".join(why(limited))
        assert "(limit " in headline(limited)


def test_an_accuracy_is_measured_or_predicted() -> None:
    advice = made_advice(full_profile(["ants", "bees"]))
    head = next(r for r in advice.recommendations if get_strategy(r.strategy).role == "baseline")
    for measured, basis in ((True, "measured"), (False, "predicted")):
        only = replace(advice, recommendations=(replace(head, measured=measured),))
        assert section(printed(only), "Strategies")[1].endswith(basis)


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


def on(advice: Advice, peak_bytes: int | None, device_bytes: int | None) -> Advice:
    best = replace(advice.best, peak_bytes=peak_bytes)
    ranked = (best, *advice.recommendations[1:])
    return replace(advice, recommendations=ranked, device_bytes=device_bytes)


def test_the_reports_say_what_memory_a_fit_needs() -> None:
    advice = made_advice(full_profile(["a", "b", "c"]))
    cpu, gpu = on(advice, 1_234_000_000, None), on(advice, 9_400_000_000, 80 * 10**9)
    unknown = on(advice, None, 80 * 10**9)

    assert "and needs about 1.2 GB of memory." in why(cpu)[0]
    assert "and needs about 9.4 GB of 80 GB." in why(gpu)[0]
    assert "needs" not in why(unknown)[0]
    assert "needs about 9.4 GB of 80 GB" in advice_markdown(gpu)
    assert "needs about 9.4 GB of 80 GB on this machine" in page(gpu, made_gallery(gpu))
    assert "GB" not in printed(cpu)
    assert "GB" not in printed(unknown)
    short = " ".join(printed(gpu).split())
    assert "and needs about 9.4 GB of 80 GB. Next: tl-auto run." in short
    assert len(printed(gpu).splitlines()) == len(printed(cpu).splitlines())


@pytest.mark.parametrize("advice", CROWDED)
def test_a_report_of_an_accelerator_has_at_most_45_lines_too(advice: Advice) -> None:
    lines = printed(on(advice, 123 * 10**9, 150 * 10**9)).splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 80
