"""Layer SVM: linear support vector machine on frozen activations of one or several depths."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Self, final, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution

from strategies.base import GainPrior, Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.data.sampling import stratified_rows
from strategies.heads.batches import Loss
from strategies.heads.compute_budget import affordable_views
from strategies.heads.cross_validation import ClassWeight, one_standard_error_rule
from strategies.heads.linear_head import (
    MAX_MULTI_VIEW_IMAGES,
    LinearSettings,
    cross_validate_head,
    fit_on_features,
    unusable_setting,
    view_counts,
)
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.body import Pooling
from strategies.models.classifier import ImageClassifier
from strategies.models.multi_view import extract_views
from strategies.training.defaults import Measurements

POOLINGS: tuple[Pooling, ...] = ("mean", "grid")
SQUARED_HINGE: Loss = "squared_hinge"
MAX_CUT_IMAGES, MIN_PER_CLASS = 20_000, 20
"""Maximum number of images on which the cut is chosen, and the minimum of every class. The head is
fitted to all."""
SHARE = 0.25
"""Share of the features that a candidate with feature selection keeps."""


@dataclass(frozen=True)
class Cut:
    """Features that an SVM reads: depths (see `depth_set`), pooling, and the share it keeps."""

    depth: int
    pooling: Pooling
    share: float = 1.0


@final
@dataclass(frozen=True)
class LayerSVM(Strategy):
    """Linear SVM (squared hinge, one-vs-rest) on the activations of one or several depths.

    The network is truncated after the deepest depth in use, so an earlier depth also runs faster.

    Attributes
    ----------
    depth
        The depth, counted from 1. 0: all depths, concatenated. -k: the last k depths. None: chosen
        by cross-validation. The last half of the depths is replaced only by candidates that are
        better by two standard errors; of these, the cheapest within one standard error of the
        best is chosen. Of more than 20,000 images, that many are cross-validated.
    strength
        L2 strength, for features scaled to unit mean squared length. None: chosen by
        cross-validation.
    pooling
        "mean" over the image, or "grid": over each of its quarters, which keeps coarse position.
        None: chosen by cross-validation.
    share
        Share of the activations that are used: those with the largest coefficients (Head2Toe).
        None: chosen by cross-validation; below 1 only with all depths and grid pooling.
    views, class_weight, input_px
        As for the linear probe. With grid pooling, views None is one view.
    """

    depth: int | None = None
    strength: float | None = None
    pooling: Pooling | None = None
    share: float | None = None
    views: int | None = None
    class_weight: ClassWeight = "none"
    input_px: int | None = None

    name: ClassVar[str] = "layer_svm"
    title: ClassVar[str] = "Layer SVM"
    references: ClassVar[tuple[str, ...]] = (
        "A. Sharif Razavian et al., CNN features off-the-shelf, CVPR workshops 2014",
        "J. Yosinski et al., How transferable are features in deep neural networks?, 2014",
        "U. Evci et al., Head2Toe, ICML 2022",
    )
    trains_network: ClassVar[bool] = False
    head_loss: ClassVar[Loss | None] = SQUARED_HINGE
    fallback_gain: ClassVar[GainPrior] = GainPrior(0.40, 0.55)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return depth, pooling, class weights, input size. Cross-validation chooses the rest."""
        return {
            "depth": CategoricalDistribution([None, *range(backbone.n_depths + 1)]),
            "pooling": CategoricalDistribution([None, *POOLINGS]),
            "class_weight": CategoricalDistribution(get_args(ClassWeight)),
            "input_px": CategoricalDistribution(input_sizes(backbone)),
        }

    @classmethod
    def starting_point(cls, measured: Measurements) -> Self:
        """Return the defaults: cross-validation chooses depth, pooling, strength and views."""
        return cls(input_px=measured.input_px)

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Fit the head to cached features."""
        ctx.check_time()
        backbone = resized(backbone, self.input_px)
        cut, views = self._cut(dataset, backbone, ctx)
        network, found = fit_on_features(
            dataset, backbone, ctx, self._settings(cut, views, backbone)
        )
        used = replace(
            self,
            depth=cut.depth,
            strength=found.strength,
            pooling=cut.pooling,
            share=cut.share,
            views=found.views,
            input_px=backbone.input_px,
        )
        return ImageClassifier(
            dataset.classes,
            backbone,
            depth_set(cut.depth, backbone),
            network,
            self.name,
            used.hyperparameters(),
            cut.pooling,
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return one pass per view, and one for grid pooling. A pass serves all depths."""
        views = self.views or max(view_counts(len(dataset.train)))
        scale = (self.input_px or backbone.input_px) / backbone.input_px
        return len(dataset.train) * (1 + views) * scale**2

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject depths that the backbone does not have, and impossible shares and heads."""
        n = backbone.n_depths
        if self.depth is not None and not -n <= self.depth <= n:
            return f"depth must be in {-n}..{n}, got {self.depth}"
        if self.share is not None and not 0 < self.share <= 1:
            return f"share must be above 0 and at most 1, got {self.share}"
        return unusable_setting(self.strength, self.views)

    def _settings(self, cut: Cut, views: int | None, backbone: Backbone) -> LinearSettings:
        return LinearSettings(
            depth_set(cut.depth, backbone),
            SQUARED_HINGE,
            self.strength,
            cut.pooling,
            views,
            self.class_weight,
            cut.share,
        )

    def _cut(
        self, dataset: Dataset, backbone: Backbone, ctx: RunContext
    ) -> tuple[Cut, int | None]:
        """Return the cut and the views; choose by cross-validation what is not set.

        Views of None are left to the fit of the head.
        """
        cuts = self._candidate_cuts(dataset, backbone)
        if len(cuts) == 1:
            return cuts[0], 1 if cuts[0].pooling == "grid" and self.views is None else self.views
        n_views = (self.views,) if self.views else view_counts(len(dataset.train))
        rows = stratified_rows(dataset.train, MAX_CUT_IMAGES, MIN_PER_CLASS, ctx.seed)
        dataset = replace(dataset, train=tuple(dataset.train[i] for i in rows))
        if self.views is None:
            n_views = affordable_views(dataset, backbone, ctx, n_views)
        activations = cache(lambda n: extract_views(dataset.train, backbone, ctx, n))
        settings, losses = [], []
        for cut in cuts:
            tried = []
            for views in self._views_for(cut, n_views):
                ctx.check_time()
                head = self._settings(cut, views, backbone)
                x = activations(views).at(head.depths, head.pooling)
                found = cross_validate_head(x, dataset, head, ctx)
                if found is None:
                    return cuts[0], self._views_for(cut, n_views)[-1]
                tried.append((views, found[0].losses))
            views, loss = min(tried, key=lambda pair: float(pair[1].mean()))
            settings.append((cut, views))
            losses.append(loss)
        costs = [backbone.depths[depth_set(c.depth, backbone)[-1] - 1].flops_share for c in cuts]
        return settings[one_standard_error_rule(losses, costs)]

    def _candidate_cuts(self, dataset: Dataset, backbone: Backbone) -> list[Cut]:
        """Return the candidates that match the fields that are set.

        If a depth is set that no candidate has, return a cut made of the fields alone.
        """
        matching = [
            replace(cut, share=self.share or cut.share)
            for cut in candidates(backbone, len(dataset.train))
            if self.depth in (None, cut.depth) and self.pooling in (None, cut.pooling)
        ]
        if self.depth is not None and not matching:
            matching = [Cut(self.depth, self.pooling or "mean", self.share or 1.0)]
        return list(dict.fromkeys(matching))

    def _views_for(self, cut: Cut, n_views: tuple[int, ...]) -> tuple[int, ...]:
        """Return the numbers of views to try: one for a grid, as flips blur its positions."""
        return (1,) if cut.pooling == "grid" and self.views is None else n_views


def depth_set(depth: int, backbone: Backbone) -> tuple[int, ...]:
    """Return the depths that a ``depth`` hyperparameter denotes: 0 for all, -k for the last k."""
    every = tuple(range(1, backbone.n_depths + 1))
    return (depth,) if depth > 0 else every[depth:]


def candidates(backbone: Backbone, n_train: int) -> list[Cut]:
    """Return the cuts to cross-validate; the first is the default.

    Feature selection is tried on small datasets only, because it ranks the features in every fold.
    """
    n = backbone.n_depths
    together = [Cut(-max(1, n // 2), "mean"), Cut(0, "mean"), Cut(0, "grid")]
    shares = [Cut(0, "grid", SHARE)] if n_train <= MAX_MULTI_VIEW_IMAGES else []
    single = [Cut(d, p) for d in range(1, n) for p in POOLINGS]
    return [*together, *shares, Cut(n, "mean"), *single]
