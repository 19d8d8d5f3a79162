"""A linear classifier on the last features of the frozen network."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast, final

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import ImageTask
from strategies.heads.cross_validation import ClassWeight
from strategies.heads.linear_head import LinearSettings, fit_on_features, open_views
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier


@final
@dataclass(frozen=True)
class LinearProbe(Strategy):
    """Softmax regression on the penultimate activations.

    Attributes
    ----------
    strength
        L2 strength, for features scaled to unit mean squared length; None: by cross-validation.
    views
        What is learnt from of every train picture: 1 its centre, 6 also its mirror image and its
        corners; None: by cross-validation, for up to 1,000 pictures. Prediction looks at the
        centre alone.
    class_weight
        "balanced" lets every class count alike, however many pictures it has.
    input_px
        Side of the square input; None: the backbone's.
    """

    strength: float | None = None
    views: int | None = None
    class_weight: ClassWeight = "none"
    input_px: int | None = None

    name: ClassVar[str] = "linear_probe"
    summary: ClassVar[str] = "softmax regression on the frozen network's last features"
    references: ClassVar[tuple[str, ...]] = (
        "J. Donahue et al., DeCAF, ICML 2014",
        "S. Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019",
    )
    selects_on_val: ClassVar[bool] = False

    @classmethod
    def suggest(cls, trial: BaseTrial, task: ImageTask, backbone: Backbone) -> Self:
        """Draw class weights and input size; strength and views are left to cross-validation."""
        weight = trial.suggest_categorical("class_weight", ["none", "balanced"])
        px = trial.suggest_categorical("input_px", input_sizes(backbone))
        return cls(class_weight=cast(ClassWeight, weight), input_px=px)

    def fit(self, task: ImageTask, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit on cached features."""
        backbone = resized(backbone, self.input_px)
        depths = (backbone.n_depths,)
        settings = LinearSettings(
            depths, "softmax", self.strength, views=self.views, class_weight=self.class_weight
        )
        network, found = fit_on_features(task, backbone, ctx, settings)
        used = replace(
            self, strength=found.strength, views=found.views, input_px=backbone.input_px
        )
        return ImageClassifier(
            task.classes, backbone, depths, network, self.name, used.hyperparameters()
        )

    def image_passes(self, task: ImageTask, backbone: Backbone) -> float:
        """Return one pass for every view of every train picture."""
        views = self.views or max(open_views(len(task.train)))
        scale = (self.input_px or backbone.input_px) / backbone.input_px
        return len(task.train) * views * scale**2
