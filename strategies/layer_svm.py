"""A linear support vector machine on activations from an earlier depth."""

from dataclasses import dataclass
from typing import ClassVar, Self, final

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.backbone import Backbone
from strategies.core.classifier import ImageClassifier
from strategies.core.features import extract_features
from strategies.core.frozen import fit_on_features
from strategies.core.probes import (
    STRENGTHS,
    cheapest_within_error,
    cross_validate,
    fold_numbers,
)
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, groups_of, labels_of


@final
@dataclass(frozen=True)
class LayerSVM(Strategy):
    """Linear SVM (squared hinge, one against the rest) on the activations of one depth, or of all.

    The network is cut behind the deepest depth in use, so an earlier depth also runs faster.

    Attributes
    ----------
    depth
        The depth, counted from 1; 0 for all depths side by side; None: by cross-validation, where
        the earliest depth within one standard error of the best wins.
    strength
        L2 strength, for features scaled to unit mean squared length; None: by cross-validation.
    """

    depth: int | None = None
    strength: float | None = None

    name: ClassVar[str] = "layer_svm"
    summary: ClassVar[str] = "linear SVM on the frozen network's activations at the best depth"
    references: ClassVar[tuple[str, ...]] = (
        "A. Sharif Razavian et al., CNN features off-the-shelf, CVPR workshops 2014",
        "J. Yosinski et al., How transferable are features in deep neural networks?, 2014",
    )
    selects_on_val: ClassVar[bool] = False

    @classmethod
    def suggest(cls, trial: BaseTrial, task: ImageTask, backbone: Backbone) -> Self:
        """Draw depth and L2 strength."""
        depth = trial.suggest_categorical("depth", list(range(backbone.n_depths + 1)))
        strength = trial.suggest_float("strength", STRENGTHS[-1], STRENGTHS[0], log=True)
        return cls(depth, strength)

    def fit(self, task: ImageTask, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit on cached features."""
        ctx.check_time()
        depth = self.depth
        if depth is None:
            depth = choose_depth(task, backbone, ctx)
        depths = depth_set(depth, backbone)
        network, strength = fit_on_features(
            task, backbone, ctx, depths, self.strength, "squared_hinge"
        )
        used = LayerSVM(depth, strength)
        return ImageClassifier(
            task.classes, backbone, depths, network, self.name, used.hyperparameters()
        )

    def image_passes(self, task: ImageTask, backbone: Backbone) -> float:
        """Return one pass for every train picture: all depths come from the same pass."""
        return float(len(task.train))


def depth_set(depth: int, backbone: Backbone) -> tuple[int, ...]:
    """Return the depths that a ``depth`` hyperparameter stands for; 0 is all of them."""
    return tuple(range(1, backbone.n_depths + 1)) if depth == 0 else (depth,)


def choose_depth(task: ImageTask, backbone: Backbone, ctx: RunContext) -> int:
    """Choose by cross-validation: the earliest depth within a standard error of the best, or 0."""
    features = extract_features(task.train, backbone, ctx)
    labels = labels_of(task.train)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(task.train))
    candidates: list[int] = [*range(1, backbone.n_depths + 1), 0]
    tried = [
        cross_validate(
            features.at(depth_set(depth, backbone)),
            labels,
            task.n_classes,
            folds=folds,
            loss="squared_hinge",
            device=ctx.device,
        )
        for depth in candidates
    ]
    return candidates[cheapest_within_error([t.correct[t.best] for t in tried])]
