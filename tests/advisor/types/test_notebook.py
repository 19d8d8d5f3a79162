"""Advice and outcome in an interpreter and in a notebook: repr, HTML and tables of pandas."""

import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from advisor import advise
from advisor.types.advice import Finding
from advisor.types.notebook import MAX_TRIALS
from advisor.types.options import Options
from strategies.core.errors import TransferError
from strategies.core.metrics import proportion
from tests.advisor.report.made import full_profile, hostile_advice, made_advice, made_outcome

TAGS = {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
TAGS |= {"ul", "li", "br"}
VOID = Finding("TL020", "issue", "the labels carry no signal", "d", "Check them.", (), True)


class Page(HTMLParser):
    """Reads a fragment of HTML: its tags, attributes, text and table rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), set[str](), ""
        self.rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_the_repr_of_an_advice_says_what_to_do_in_a_few_lines() -> None:
    advice = made_advice(full_profile("abc"))
    lines = repr(advice).splitlines()
    best, second = advice.recommendations[:2]
    assert lines[0].startswith(f"Advice for made: {best.strategy}: expected accuracy ")
    assert best.accuracy.percent() in lines[0]
    assert second.accuracy.percent() in lines[1]
    assert len(lines) <= 5
    assert max(map(len, lines)) < 160


def test_the_repr_of_a_void_advice_recommends_nothing() -> None:
    text = repr(replace(made_advice(full_profile("abc")), findings=(VOID,)))
    assert text.startswith("Advice for made: the labels carry no signal; first: Check them.")
    assert "runner-up" not in text


def test_the_repr_of_an_outcome_says_what_was_reached_and_at_what_cost() -> None:
    outcome = made_outcome(made_advice(full_profile("abc")))
    text = repr(outcome)
    assert outcome.test is not None
    assert outcome.best.val_accuracy is not None
    for part in (outcome.test.accuracy, outcome.best.val_accuracy):
        assert part.percent() in text
    assert "time budget used up" in text
    assert len(text.splitlines()) <= 5
    assert "there are no test images" in repr(replace(outcome, test=None))
    doubtful = replace(outcome.advice, findings=(VOID,))
    assert "caution: the labels carry no signal" in repr(replace(outcome, advice=doubtful))


def test_the_html_of_an_advice_has_all_strategies_and_findings_and_no_markup_of_the_data() -> None:
    advice = hostile_advice()
    page = Page(advice._repr_html_())
    assert page.tags <= TAGS
    assert page.attributes <= {"open"}
    assert [row[1] for row in page.rows[1:]] == [r.strategy for r in advice.recommendations]
    assert [row[2] for row in page.rows[1:]] == [
        r.accuracy.percent() for r in advice.recommendations
    ]
    for finding in advice.findings:
        assert finding.code in page.text
        assert finding.detail in page.text
        assert finding.action in page.text
    assert advice.dataset in page.text


def test_the_html_of_an_outcome_has_its_best_trials_and_no_markup_of_the_data() -> None:
    outcome = made_outcome(hostile_advice())
    page = Page(outcome._repr_html_())
    assert page.tags <= TAGS
    assert "pruned: <b>worse</b> than the median" in page.text
    scores = [row[2] for row in page.rows[1:]]
    scored = [t.val_accuracy for t in outcome.trials if t.val_accuracy]
    best = max(scored, key=lambda score: score.mid)
    assert scores[0] == best.percent()
    assert len(scores) == len(outcome.trials)


def test_the_html_of_a_long_run_has_only_its_best_trials() -> None:
    page = Page(made_outcome(hostile_advice(), n_trials=MAX_TRIALS + 5)._repr_html_())
    assert len(page.rows) == 1 + MAX_TRIALS
    assert "and 5 more: to_frame()" in page.text


def test_the_table_of_an_advice_has_a_row_for_every_strategy_and_input_size(
    make_folder: Callable[..., Path], warm_cache: Path
) -> None:
    options = Options(input_px=64, device="cpu", cache_dir=warm_cache)
    advice = advise(make_folder("data", 8), options)
    table = advice.to_frame()
    assert advice.frontier is not None
    expected = {(o.strategy, o.input_px) for o in advice.frontier.options}
    assert set(zip(table["strategy"], table["input_px"], strict=True)) == expected
    assert len(table) == len(expected)
    ranked = table.dropna(subset="rank").sort_values("rank")
    assert list(ranked["strategy"]) == [r.strategy for r in advice.recommendations]
    assert list(ranked["accuracy"]) == [r.accuracy.mid for r in advice.recommendations]
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["accuracy_high"]).all()
    assert table["seconds"].gt(0).all()
    trained = table.set_index("strategy").loc["full_fine_tune", "params_lr"]
    assert (pd.Series(trained) > 0).all()
    assert repr(advice).startswith("Advice for data: ")


def test_the_table_of_an_outcome_has_a_row_for_every_trial() -> None:
    outcome = made_outcome(made_advice(full_profile("abc")))
    table = outcome.to_frame()
    assert list(table["number"]) == [t.number for t in outcome.trials]
    assert table.loc[0, "val_accuracy"] == proportion(0.85, 80).mid
    assert list(table["val_accuracy"].isna()) == [t.val_accuracy is None for t in outcome.trials]
    assert table.loc[1, "params_lr"] == outcome.trials[1].hyperparameters["lr"]
    assert pd.isna(table.loc[0, "params_lr"])
    assert table["n_train"].isna().all()


def test_without_pandas_a_table_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(TransferError, match=r"pip install 'tl-advisor\[pandas\]'"):
        made_advice(full_profile("abc")).to_frame()
