"""Rows and chart of what one gets in a given time."""

from dataclasses import replace

import pytest

from advisor.report.charts.frontier import frontier_chart
from advisor.report.frontier import HEADING, pick_rows
from advisor.report.html import page
from advisor.report.markdown import advice_markdown
from advisor.types.advice import Advice, BudgetPick, Frontier
from strategies.core.metrics import Interval
from tests.advisor.report.made import full_profile, made_advice, made_gallery

ADVICE = made_advice(replace(full_profile(["ants", "bees"]), ms_per_image=200.0))


def pick(time_s: float | None, accuracy: float, px: int, strategy: str = "probe") -> BudgetPick:
    expected = Interval(accuracy - 0.05, accuracy, accuracy + 0.05)
    passes = None if time_s is None else 100 * time_s
    return BudgetPick(time_s, passes, strategy, px, expected, Interval(5.0, 10.0, 20.0))


def with_picks(*picks: BudgetPick) -> Advice:
    assert ADVICE.frontier is not None
    return replace(ADVICE, frontier=Frontier(ADVICE.frontier.options, picks))


def test_equal_picks_in_a_row_are_joined_at_their_shortest_time() -> None:
    advice = with_picks(
        pick(15, 0.7, 96), pick(30, 0.7, 96), pick(60, 0.8, 96, "tune"), pick(120, 0.9, 224)
    )
    rows = pick_rows(advice)
    assert [row.time for row in rows] == ["within 15 s", "within 1 min", "within 2 min"]
    assert [row.pick.accuracy.mid for row in rows] == [0.7, 0.8, 0.9]


def test_the_last_row_holds_for_all_longer_times() -> None:
    joined = with_picks(pick(60, 0.7, 96), pick(600, 0.8, 224), pick(None, 0.8, 224))
    assert [row.time for row in pick_rows(joined)] == ["within 1 min", "10 min or more"]
    own = with_picks(pick(60, 0.7, 96), pick(None, 0.8, 224))
    assert [row.time for row in pick_rows(own)] == ["within 1 min", "no limit"]


def test_surplus_rows_are_those_that_gain_least() -> None:
    accuracies = [0.5, 0.6, 0.61, 0.7, 0.71]
    picks = [pick(15.0 * (i + 1), a, 32 * (i + 1)) for i, a in enumerate(accuracies)]
    rows = pick_rows(with_picks(*picks), 4)
    assert [row.pick.accuracy.mid for row in rows] == [0.5, 0.6, 0.7, 0.71]
    assert len(pick_rows(with_picks(*picks))) == 5


def test_advice_without_a_frontier_has_no_rows_and_no_chart() -> None:
    bare = replace(ADVICE, frontier=None)
    assert pick_rows(bare) == ()
    assert frontier_chart(bare) is None
    assert HEADING not in advice_markdown(bare)
    assert HEADING not in page(bare, made_gallery(bare))


def test_markdown_and_page_have_every_row() -> None:
    html = page(ADVICE, made_gallery(ADVICE))
    markdown = advice_markdown(ADVICE)
    assert HEADING in html
    assert HEADING in markdown
    for row in pick_rows(ADVICE):
        assert f'<td class="whole">{row.time}</td>' in html
        assert f"| {row.time} | " in markdown


def test_the_chart_shows_every_option_and_a_step_for_every_pick() -> None:
    chart, frontier = frontier_chart(ADVICE), ADVICE.frontier
    assert chart is not None
    assert frontier is not None
    *options, steps = [layer["data"]["values"] for layer in chart.spec["layer"]]
    assert {(v["seconds"], v["mid"]) for v in options[0]} == {
        (o.seconds.mid, o.accuracy.mid) for o in frontier.options
    }
    assert len(chart.rows) == len(frontier.options)
    assert [s["mid"] for s in steps[: len(frontier.picks)]] == [
        p.accuracy.mid for p in frontier.picks
    ]
    times = [s["seconds"] for s in steps]
    assert times == sorted(times)
    assert times[-1] >= max(o.seconds.mid for o in frontier.options)


@pytest.mark.parametrize("time_s", [15.0, None])
def test_one_pick_makes_a_chart(time_s: float | None) -> None:
    assert frontier_chart(with_picks(pick(time_s, 0.7, 96))) is not None
