"""Recipe: validation of settings, warm-up, and drafts."""

import pytest

from strategies.core.errors import NotApplicable
from strategies.training.recipe import Recipe, RecipeDraft


@pytest.mark.parametrize(
    "wrong", [{"blend": 0.0}, {"layer_lr_decay": 1.5}, {"ema": 1.0}, {"l2_sp": -1.0}]
)
def test_settings_out_of_range_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(NotApplicable, match=next(iter(wrong))):
        Recipe(1, 0.1, **wrong)


@pytest.mark.parametrize(("steps", "share"), [(1000, 0.1), (200, 0.25), (60, 0.5)])
def test_a_short_run_has_at_least_the_minimum_number_of_warmup_steps(
    steps: int, share: float
) -> None:
    assert Recipe(steps=steps, lr=1e-3).warmup == pytest.approx(share)


def test_a_draft_becomes_a_recipe_only_with_steps_and_a_learning_rate() -> None:
    with pytest.raises(ValueError, match="steps"):
        Recipe.of(RecipeDraft(lr=1e-3))
    draft = RecipeDraft(steps=10, lr=1e-3, mixup=0.2)
    assert Recipe.of(draft) == Recipe(steps=10, lr=1e-3, mixup=0.2)
