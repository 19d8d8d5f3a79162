"""Markdown reports and the model card: complete, with text from the data escaped."""

from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from advisor.report.card.model_card import model_card
from advisor.report.markdown import advice_markdown, escape
from advisor.types.summary import result
from tests.advisor.report.made import (
    HOSTILE,
    full_profile,
    hostile_advice,
    made_advice,
    made_outcome,
)


def rendered(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


@pytest.mark.parametrize(
    "name", [*HOSTILE, "**bold**", "[a](javascript:alert(1))", "a | b", "# x"]
)
def test_markup_in_a_name_is_escaped(name: str) -> None:
    html = rendered(f"x {escape(name)}")
    for tag in ("<script", "<img", "<b>", "<strong", "<a ", "<h1", "<code"):
        assert tag not in html


def test_a_hostile_dataset_creates_no_html_element() -> None:
    advice = hostile_advice()
    outcome = made_outcome(advice)
    for text in (advice_markdown(advice), model_card(outcome)):
        html = rendered(text)
        for tag in ("<script", "<img", "<b>", "<i>"):
            assert tag not in html


def test_the_report_has_every_strategy_finding_and_the_command() -> None:
    advice = replace(hostile_advice(), command="tl-advise data --seed 0")
    html = rendered(advice_markdown(advice))
    for r in advice.recommendations:
        assert f"<td>{r.strategy}</td>" in html
        assert r.accuracy.percent() in html
    assert html.count("TL003 issue") == 2
    assert "<code>tl-advise data --seed 0" in html
    assert "with random weights" in html


def test_the_model_card_has_accuracy_classes_limits_and_settings() -> None:
    outcome = made_outcome(made_advice(full_profile(["ants", "bees"])))
    assert outcome.test is not None
    card = rendered(model_card(outcome))
    assert outcome.test.accuracy.percent() in card
    for words in ("ants", "bees", "Limits", "Transfer gain", "full_fine_tune", "seed 0"):
        assert words in card
    untested = rendered(model_card(replace(outcome, test=None)))
    assert "not known" in untested
    assert "not evaluated" in untested


def test_a_different_winning_backbone_is_named_with_the_licence_of_its_weights() -> None:
    outcome = made_outcome(made_advice(full_profile(("ants", "bees"))))
    own, other = outcome.advice.profile.backbone, "tf_efficientnet_lite2"
    best = replace(
        outcome.best, hyperparameters={**outcome.best.hyperparameters, "backbone": other}
    )
    won = replace(outcome, best=best)
    assert own not in result(outcome)
    assert f"{best.strategy} on {other}:" in result(won)
    card = rendered(model_card(won))
    assert f"on {other} at" in card
    assert "apache-2.0" in card
