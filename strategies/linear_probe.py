"""A linear classifier on the last features of the frozen network."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.backbone import Backbone
from strategies.core.classifier import ImageClassifier
from strategies.core.frozen import fit_on_features
from strategies.core.probes import STRENGTHS
from strategies.core.run import RunContext
from strategies.core.task import ImageTask


@final
@dataclass(frozen=True)
class LinearProbe(Strategy):
    """Softmax regression on the penultimate activations.

    Attributes
    ----------
    strength
        L2 strength, for features scaled to unit mean squared length; None: by cross-validation.
    """

    strength: float | None = None

    name: ClassVar[str] = "linear_probe"
    summary: ClassVar[str] = "softmax regression on the frozen network's last features"
    references: ClassVar[tuple[str, ...]] = (
        "J. Donahue et al., DeCAF, ICML 2014",
        "S. Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019",
    )
    selects_on_val: ClassVar[bool] = False

    @classmethod
    def suggest(cls, trial: BaseTrial, task: ImageTask, backbone: Backbone) -> Self:
        """Draw the L2 strength."""
        return cls(trial.suggest_float("strength", STRENGTHS[-1], STRENGTHS[0], log=True))

    def fit(self, task: ImageTask, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit on cached features."""
        depths = (backbone.n_depths,)
        network, strength = fit_on_features(task, backbone, ctx, depths, self.strength, "softmax")
        used = replace(self, strength=strength)
        return ImageClassifier(
            task.classes, backbone, depths, network, self.name, used.hyperparameters()
        )

    def image_passes(self, task: ImageTask, backbone: Backbone) -> float:
        """Return one pass for every train picture."""
        return float(len(task.train))
