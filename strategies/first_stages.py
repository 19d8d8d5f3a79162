"""First stages: train only the first stages of the network and the head (surgical fine-tuning)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

from optuna.distributions import BaseDistribution, IntDistribution

from strategies.base import GainPrior
from strategies.data.dataset import Dataset
from strategies.fine_tuning import FineTuning
from strategies.models.backbone import Backbone
from strategies.training.defaults import NetworkFacts
from strategies.training.recipe import SMOOTHED, RecipeDraft

DRAFT = replace(SMOOTHED, layer_lr_decay=1.0)
"""A learning rate that decays towards the input would leave the first stages as they are."""


@final
@dataclass(frozen=True)
class FirstStages(FineTuning):
    """Fine-tuning of the first stages and the head, with the stages between them frozen.

    It is for images that look different from those of pretraining (blur, noise, another sensor)
    and show similar things: the first stages adapt to the look, and the others are kept. On 26
    datasets, none of them of that kind, it was never the best strategy (docs/benchmarks/suite.md).

    Attributes
    ----------
    recipe
        As for full fine-tuning. `last_trained_stage` is a third of the depths if it is open.
    """

    recipe: RecipeDraft = DRAFT

    name: ClassVar[str] = "first_stages"
    title: ClassVar[str] = "First stages"
    references: ClassVar[tuple[str, ...]] = (
        "Y. Lee et al., Surgical fine-tuning improves adaptation to distribution shifts, ICLR "
        "2023",
    )
    fallback_gain: ClassVar[GainPrior] = GainPrior(0.4, 1.0)
    """Between the linear probe and full fine-tuning; no published table has it with new classes,
    so it is wide."""
    tunable: ClassVar[tuple[str, ...]] = ("last_trained_stage", *FineTuning.tunable)
    tunable_by_layer: ClassVar[tuple[str, ...]] = ("drop_path",)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return the number of trained stages, and what full fine-tuning samples."""
        last = IntDistribution(1, backbone.n_depths - 1)
        return {"last_trained_stage": last, **super().search_space(dataset, backbone)}

    def resolved(self, n_train: int, network: NetworkFacts) -> RecipeDraft:
        """Return the recipe with a third of the depths trained, unless a number is set."""
        draft, last = super().resolved(n_train, network), self.recipe.last_trained_stage
        third = max(1, network.n_depths // 3)
        return replace(draft, last_trained_stage=third if last is None else last)

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject training no stage, or all of them."""
        k = self.recipe.last_trained_stage
        if k is not None and not 1 <= k < backbone.n_depths:
            return f"last_trained_stage must be in 1..{backbone.n_depths - 1}, got {k}"
        return super().inapplicable(dataset, backbone)
