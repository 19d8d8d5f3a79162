"""Full fine-tuning: train all layers from the pretrained weights (LP-FT)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from strategies.base import VTAB_1K, GainPrior, PublishedGain
from strategies.data.dataset import Dataset
from strategies.fine_tuning import FineTuning
from strategies.models.backbone import Backbone
from strategies.training.defaults import NetworkFacts
from strategies.training.recipe import SMOOTHED, RecipeDraft


@final
@dataclass(frozen=True)
class FullFineTune(FineTuning):
    """Fit a linear probe as the head, then train body and head together (LP-FT).

    Attributes
    ----------
    recipe
        Settings of the training run, of which all in `tunable` are hyperparameters. Learning rate,
        blend and horizontal flips are chosen from the images if they are open (`defaults`), and
        batch and number of steps follow from the number of images (`default_batch_size`,
        `default_steps`).
    """

    recipe: RecipeDraft = SMOOTHED

    name: ClassVar[str] = "full_fine_tune"
    title: ClassVar[str] = "Full fine-tuning"
    references: ClassVar[tuple[str, ...]] = (
        "A. Kumar et al., Fine-tuning can distort pretrained features, ICLR 2022",
        "S. Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019",
        "M. Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022",
    )
    fallback_gain: ClassVar[GainPrior] = GainPrior(0.84, 0.92)
    transformer_gain: ClassVar[PublishedGain] = PublishedGain(-0.09, 1.26, 20, 1000, VTAB_1K)
    """Full fine-tuning over a linear probe. Few learning rates were tried there."""
    tunable: ClassVar[tuple[str, ...]] = (
        "lr",
        "blend",
        "head_lr_factor",
        "layer_lr_decay",
        "steps",
        "optimiser",
        "batch_norm",
        "reset_stages",
        "label_smoothing",
        "mixup",
        "cutmix",
        "l2_sp",
        "ema",
        "hflip",
    )

    def resolved(self, n_train: int, network: NetworkFacts) -> RecipeDraft:
        """Return the recipe; a convolutional network has one learning rate at all depths."""
        draft = super().resolved(n_train, network)
        if network.family != "convolutional" or draft.layer_lr_decay is not None:
            return draft
        return replace(draft, layer_lr_decay=1.0)

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject resetting all stages: that is training from scratch."""
        k = self.recipe.reset_stages
        if not 0 <= k < backbone.n_depths:
            return f"reset_stages must be in 0..{backbone.n_depths - 1}, got {k}"
        return super().inapplicable(dataset, backbone)
