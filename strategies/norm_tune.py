"""Norm tuning: train only the normalisation layers, the biases and the head."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from strategies.base import VTAB_1K, GainPrior, PublishedGain
from strategies.fine_tuning import FineTuning
from strategies.training.defaults import NetworkFacts, scaled_lr
from strategies.training.recipe import RecipeDraft

DRAFT = RecipeDraft(
    blend=1.0,
    label_smoothing=0.1,
    layer_lr_decay=1.0,
    drop_path=0.0,
    trained="norms_and_biases",
)
LR, LR_BY_LAYER = 3e-3, 1e-3
"""Learning rates for convolutional networks, and for transformers and ConvNeXt.

These few parameters need a larger learning rate than whole layers. The first was chosen from 1e-3,
3e-3, 6e-3 and 1e-2 on held-out train images of eurosat, dtd10 and weather4 (20 images per class,
one seed). Half the steps lost 0.5 and 1.3 points on two of them, and save half of the time. The
second was better than 1e-2 for LayerNorm tuning of a ViT-B/16 on 14 of the 20 datasets of the
VTAB-1k tables (`fallback_gain`)."""


@final
@dataclass(frozen=True)
class NormTune(FineTuning):
    """Fine-tuning of scale and shift of the normalisation layers, all biases, and the head.

    All other weights are frozen and need no gradient. These parameters are about a hundredth of a
    network, so few images overfit them less.

    On the convolutional network of the benchmarks it is not worth its time: it takes about as long
    as partial fine-tuning and is less accurate (docs/benchmarks/suite.md).
    On transformers published results are good (`transformer_gain`).

    Attributes
    ----------
    recipe
        As for full fine-tuning, without what concerns whole layers.
    """

    recipe: RecipeDraft = DRAFT

    name: ClassVar[str] = "norm_tune"
    title: ClassVar[str] = "Norm tuning"
    references: ClassVar[tuple[str, ...]] = (
        "J. Frankle, D. J. Schwab, A. S. Morcos, Training BatchNorm and only BatchNorm, ICLR 2021",
        "E. Ben Zaken, Y. Goldberg, S. Ravfogel, BitFit, ACL 2022",
    )
    fallback_gain: ClassVar[GainPrior] = GainPrior(0.75, 0.79)
    transformer_gain: ClassVar[PublishedGain] = PublishedGain(0.75, 0.79, 20, 1000, VTAB_1K)
    """LayerNorm-only over a linear probe."""
    tunable_by_layer: ClassVar[tuple[str, ...]] = ()
    lr_range: ClassVar[tuple[float, float]] = (3e-4, 3e-2)
    lr_range_by_layer: ClassVar[tuple[float, float]] = (1e-4, 1e-2)
    steps_share: ClassVar[float] = 0.5

    def resolved(self, n_train: int, network: NetworkFacts) -> RecipeDraft:
        """Return the recipe with the learning rate of the architecture, unless one is set."""
        draft = super().resolved(n_train, network)
        lr = LR if network.family == "convolutional" else LR_BY_LAYER
        return replace(draft, lr=scaled_lr(lr, draft) if draft.lr is None else draft.lr)
