"""Linear probe: softmax regression on the penultimate features of the frozen network."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution

from strategies.base import GainPrior, Role, Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.heads.batches import Loss
from strategies.heads.cross_validation import ClassWeight
from strategies.heads.linear_head import (
    LinearSettings,
    fit_on_features,
    unusable_setting,
    view_counts,
)
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier
from strategies.training.defaults import Measurements


@final
@dataclass(frozen=True)
class LinearProbe(Strategy):
    """Softmax regression on the pooled penultimate activations.

    Attributes
    ----------
    strength
        L2 strength, for features scaled to unit mean squared length. None: chosen by
        cross-validation.
    views
        Views of every train image. 1: the centre crop. 6: also its horizontal flip and the four
        corner crops. None: chosen by cross-validation, for up to 1,000 images. Prediction uses
        the centre crop alone.
    class_weight
        "balanced" gives every class the same total weight, regardless of its number of images.
    input_px
        Side of the square input. None: that of the backbone.
    """

    strength: float | None = None
    views: int | None = None
    class_weight: ClassWeight = "none"
    input_px: int | None = None

    name: ClassVar[str] = "linear_probe"
    title: ClassVar[str] = "Linear probe"
    references: ClassVar[tuple[str, ...]] = (
        "J. Donahue et al., DeCAF, ICML 2014",
        "S. Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019",
    )
    role: ClassVar[Role] = "baseline"
    trains_network: ClassVar[bool] = False
    head_loss: ClassVar[Loss | None] = "softmax"
    fallback_gain: ClassVar[GainPrior] = GainPrior(0.0, 0.0)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return class weights and input size. Cross-validation chooses strength and views."""
        return {
            "class_weight": CategoricalDistribution(get_args(ClassWeight)),
            "input_px": CategoricalDistribution(input_sizes(backbone)),
        }

    @classmethod
    def starting_point(cls, measured: Measurements) -> Self:
        """Return the defaults: cross-validation chooses strength and views."""
        return cls(input_px=measured.input_px)

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit the head to cached features."""
        backbone = resized(backbone, self.input_px)
        depths = (backbone.n_depths,)
        settings = LinearSettings(
            depths, "softmax", self.strength, views=self.views, class_weight=self.class_weight
        )
        network, found = fit_on_features(dataset, backbone, ctx, settings)
        used = replace(
            self, strength=found.strength, views=found.views, input_px=backbone.input_px
        )
        return ImageClassifier(
            dataset.classes, backbone, depths, network, self.name, used.hyperparameters()
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return one pass per view of every train image."""
        views = self.views or max(view_counts(len(dataset.train)))
        scale = (self.input_px or backbone.input_px) / backbone.input_px
        return len(dataset.train) * views * scale**2

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject a strength that is not positive, and impossible numbers of views."""
        return unusable_setting(self.strength, self.views)
