"""Phrases that all reports share."""

from dataclasses import replace

import pytest

from advisor.report.words import final_fit_words, with_titles
from tests.advisor.report.made import full_profile, made_advice, made_outcome


@pytest.mark.parametrize("refitted", [False, True])
def test_a_run_that_learnt_from_more_images_than_the_advice_measured_says_so(
    refitted: bool,
) -> None:
    outcome = replace(made_outcome(made_advice(full_profile(["ants", "bees"]))), refitted=refitted)
    more = final_fit_words(replace(outcome, n_train=41_234))
    assert ("refitted on train" in (final_fit_words(outcome) or "")) == refitted
    assert more is not None
    assert ("refitted on train" in more) == refitted
    assert "41,234 train images, of which the advice measured a part" in more


def test_a_classifier_of_a_part_of_the_images_is_said_to_be_one() -> None:
    outcome = replace(made_outcome(made_advice(full_profile(["ants", "bees"]))), n_train=9000)
    part = replace(outcome, best=replace(outcome.best, n_train=300))
    found = final_fit_words(part)
    assert found is not None
    assert "(300 of 9000)" in found


def test_display_names_begin_sentences_with_a_capital_letter() -> None:
    text = "full_fine_tune would do. It is linear_probe. layer_svm and norm_tune follow."
    assert with_titles(text) == (
        "Full fine-tuning would do. It is linear probe. Layer SVM and norm tuning follow."
    )
