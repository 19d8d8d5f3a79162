"""Partial fine-tuning: freeze the first stages, fine-tune the rest and the head."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

from optuna.distributions import BaseDistribution, IntDistribution

from strategies.base import VTAB_1K, GainPrior, PublishedGain
from strategies.data.dataset import Dataset
from strategies.fine_tuning import FineTuning
from strategies.models.backbone import Backbone
from strategies.training.defaults import NetworkFacts
from strategies.training.recipe import SMOOTHED, RecipeDraft


@final
@dataclass(frozen=True)
class PartialFineTune(FineTuning):
    """Fine-tuning with the parameters and BatchNorm statistics of the first stages frozen.

    The frozen stages run once over a few crops of every image, and their activations are kept
    (`strategies.training.frozen_activations`).

    Attributes
    ----------
    recipe
        As for full fine-tuning. The number of frozen stages is half of the depths if it is open.
    """

    recipe: RecipeDraft = SMOOTHED

    name: ClassVar[str] = "partial_fine_tune"
    title: ClassVar[str] = "Partial fine-tuning"
    references: ClassVar[tuple[str, ...]] = (
        "D. Soekhoe, P. van der Putten, A. Plaat, On the impact of dataset size in transfer "
        "learning using deep neural networks, IDA 2016",
    )
    fallback_gain: ClassVar[GainPrior] = GainPrior(0.80, 0.89)
    transformer_gain: ClassVar[PublishedGain] = PublishedGain(-0.09, 1.26, 20, 1000, VTAB_1K)
    """That of full fine-tuning. The tables have no partial fine-tuning."""
    tunable: ClassVar[tuple[str, ...]] = ("frozen_stages", *FineTuning.tunable)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return the number of frozen stages, and what full fine-tuning samples."""
        frozen = IntDistribution(1, backbone.n_depths - 1)
        return {"frozen_stages": frozen, **super().search_space(dataset, backbone)}

    def resolved(self, n_train: int, network: NetworkFacts) -> RecipeDraft:
        """Return the recipe with half of the depths frozen, unless a number is set."""
        draft, frozen = super().resolved(n_train, network), self.recipe.frozen_stages
        return replace(draft, frozen_stages=network.n_depths // 2 if frozen is None else frozen)

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject freezing no stage, or all of them."""
        k = self.recipe.frozen_stages
        if k is not None and not 1 <= k < backbone.n_depths:
            return f"frozen_stages must be in 1..{backbone.n_depths - 1}, got {k}"
        return super().inapplicable(dataset, backbone)
