"""Linear probe: softmax regression on the penultimate features of the frozen network."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast, final

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.heads.cross_validation import ClassWeight
from strategies.heads.linear_head import LinearSettings, fit_on_features, view_counts
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier


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
    summary: ClassVar[str] = "softmax regression on the penultimate features of the frozen network"
    references: ClassVar[tuple[str, ...]] = (
        "J. Donahue et al., DeCAF, ICML 2014",
        "S. Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019",
    )
    selects_on_val: ClassVar[bool] = False

    @classmethod
    def suggest(cls, trial: BaseTrial, dataset: Dataset, backbone: Backbone) -> Self:
        """Sample class weights and input size. Cross-validation chooses strength and views."""
        weight = trial.suggest_categorical("class_weight", ["none", "balanced"])
        px = trial.suggest_categorical("input_px", input_sizes(backbone))
        return cls(class_weight=cast(ClassWeight, weight), input_px=px)

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
