"""A linear support vector machine on activations from an earlier depth, or from all."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast, final

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.backbone import Backbone
from strategies.core.body import Pooling
from strategies.core.classifier import ImageClassifier
from strategies.core.frozen import LinearSettings, fit_on_features, open_views
from strategies.core.probes import (
    STRENGTHS,
    ClassWeight,
    better_beyond_doubt,
    cross_validate,
    fold_numbers,
)
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, groups_of, labels_of
from strategies.core.views import extract_views

POOLINGS: tuple[Pooling, ...] = ("mean", "grid")


@final
@dataclass(frozen=True)
class LayerSVM(Strategy):
    """Linear SVM (squared hinge, one against the rest) on the activations of one depth, or of all.

    The network is cut behind the deepest depth in use, so an earlier depth also runs faster.

    Attributes
    ----------
    depth
        The depth, counted from 1; 0 for all depths side by side; None: by cross-validation, where
        all depths together stand until another cut is better beyond doubt.
    strength
        L2 strength, for features scaled to unit mean squared length; None: by cross-validation.
    pooling
        "mean" over the picture, "grid" over each of its quarters, so that it matters where things
        are; None: by cross-validation.
    views, class_weight
        As for the linear probe; None is one view for a grid.
    """

    depth: int | None = None
    strength: float | None = None
    pooling: Pooling | None = None
    views: int | None = None
    class_weight: ClassWeight = "none"

    name: ClassVar[str] = "layer_svm"
    summary: ClassVar[str] = "linear SVM on the frozen network's activations at the best depth"
    references: ClassVar[tuple[str, ...]] = (
        "A. Sharif Razavian et al., CNN features off-the-shelf, CVPR workshops 2014",
        "J. Yosinski et al., How transferable are features in deep neural networks?, 2014",
        "U. Evci et al., Head2Toe, ICML 2022",
    )
    selects_on_val: ClassVar[bool] = False

    @classmethod
    def suggest(cls, trial: BaseTrial, task: ImageTask, backbone: Backbone) -> Self:
        """Draw depth, pooling and class weights; strength and views are cross-validated."""
        return cls(
            depth=trial.suggest_categorical("depth", list(range(backbone.n_depths + 1))),
            pooling=cast(Pooling, trial.suggest_categorical("pooling", POOLINGS)),
            class_weight=cast(
                ClassWeight, trial.suggest_categorical("class_weight", ["none", "balanced"])
            ),
        )

    def fit(self, task: ImageTask, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit on cached features."""
        ctx.check_time()
        depth, pooling = self._cut(task, backbone, ctx)
        # Corners and mirror images are elsewhere in the picture, which is what a grid tells apart.
        views = 1 if self.views is None and pooling == "grid" else self.views
        depths = depth_set(depth, backbone)
        settings = LinearSettings(
            depths, "squared_hinge", self.strength, pooling, views, self.class_weight
        )
        network, found = fit_on_features(task, backbone, ctx, settings)
        used = replace(
            self, depth=depth, strength=found.strength, pooling=pooling, views=found.views
        )
        return ImageClassifier(
            task.classes, backbone, depths, network, self.name, used.hyperparameters(), pooling
        )

    def image_passes(self, task: ImageTask, backbone: Backbone) -> float:
        """Return one pass for choosing the cut and one for every view: it serves all depths."""
        views = self.views or max(open_views(len(task.train)))
        return float(len(task.train) * (1 + views))

    def _cut(self, task: ImageTask, backbone: Backbone, ctx: RunContext) -> tuple[int, Pooling]:
        """Return depth and pooling, by cross-validation where they are open."""
        cuts = [
            (depth, pooling)
            for depth, pooling in candidates(backbone)
            if self.depth in (None, depth) and self.pooling in (None, pooling)
        ]
        if self.depth == backbone.n_depths:  # the penultimate is pooled as the network does it
            return backbone.n_depths, self.pooling or "mean"
        if len(cuts) == 1:
            return cuts[0]
        features = extract_views(task.train, backbone, ctx, 1)
        labels = labels_of(task.train)
        folds = fold_numbers(labels, ctx.seed, groups=groups_of(task.train))
        tried = []
        for depth, pooling in cuts:
            ctx.check_time()
            found = cross_validate(
                features.at(depth_set(depth, backbone), pooling)[:, 0],
                labels,
                task.n_classes,
                folds=folds,
                loss="squared_hinge",
                strengths=STRENGTHS if self.strength is None else [self.strength],
                class_weight=self.class_weight,
                device=ctx.device,
            )
            tried.append((found.correct[found.best], found.log_loss))
        return cuts[better_beyond_doubt([h for h, _ in tried], [loss for _, loss in tried])]


def depth_set(depth: int, backbone: Backbone) -> tuple[int, ...]:
    """Return the depths that a ``depth`` hyperparameter stands for; 0 is all of them."""
    return tuple(range(1, backbone.n_depths + 1)) if depth == 0 else (depth,)


def candidates(backbone: Backbone) -> list[tuple[int, Pooling]]:
    """Return all cuts as (depth, pooling): the one that stands without evidence comes first."""
    whole: list[tuple[int, Pooling]] = [(0, "mean"), (0, "grid"), (backbone.n_depths, "mean")]
    return whole + [(d, p) for d in range(1, backbone.n_depths) for p in POOLINGS]
