"""The first stages frozen, the rest trained from the pretrained weights."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast, final

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.backbone import Backbone
from strategies.core.classifier import ImageClassifier
from strategies.core.fine_tuning import default_steps, fine_tune, training_passes
from strategies.core.run import RunContext
from strategies.core.task import ImageTask
from strategies.core.training import BatchNorm, Recipe


@final
@dataclass(frozen=True)
class PartialFineTune(Strategy):
    """The first stages keep parameters and BatchNorm statistics; the rest learns with the head.

    Attributes
    ----------
    frozen_stages
        How many depths, from the input, stay as they are; None: half of them.
    lr, head_lr_factor, steps, batch_norm, hflip
        As for full fine-tuning, for the stages that learn.
    """

    frozen_stages: int | None = None
    lr: float = 3e-4
    head_lr_factor: float = 1.0
    steps: int | None = None
    batch_norm: BatchNorm = "frozen"
    hflip: bool = False

    name: ClassVar[str] = "partial_fine_tune"
    summary: ClassVar[str] = "first stages frozen, the rest trained from the pretrained weights"
    references: ClassVar[tuple[str, ...]] = (
        "D. Soekhoe, P. van der Putten, A. Plaat, On the impact of data set size in transfer "
        "learning using deep neural networks, IDA 2016",
    )
    selects_on_val: ClassVar[bool] = True

    @classmethod
    def suggest(cls, trial: BaseTrial, task: ImageTask, backbone: Backbone) -> Self:
        """Draw the number of frozen stages, learning rates, steps and BatchNorm policy."""
        base = default_steps(len(task.train), 32)
        return cls(
            frozen_stages=trial.suggest_int("frozen_stages", 1, backbone.n_depths - 1),
            lr=trial.suggest_float("lr", 3e-5, 3e-3, log=True),
            head_lr_factor=trial.suggest_float("head_lr_factor", 1.0, 10.0, log=True),
            steps=trial.suggest_int("steps", base // 2, 2 * base),
            batch_norm=cast(
                BatchNorm, trial.suggest_categorical("batch_norm", ["frozen", "trained"])
            ),
            hflip=trial.suggest_categorical("hflip", [False, True]),
        )

    def fit(self, task: ImageTask, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train; the weights that were best on val are kept."""
        used = self._resolved(task, backbone)
        assert used.steps is not None
        assert used.frozen_stages is not None
        recipe = Recipe(
            steps=used.steps,
            lr=used.lr,
            head_lr_factor=used.head_lr_factor,
            batch_norm=used.batch_norm,
            frozen_stages=used.frozen_stages,
            hflip=used.hflip,
        )
        network = fine_tune(task, backbone, recipe, ctx)
        return ImageClassifier(
            task.classes,
            backbone,
            (backbone.n_depths,),
            network,
            self.name,
            used.hyperparameters(),
        )

    def image_passes(self, task: ImageTask, backbone: Backbone) -> float:
        """Return the passes of the probe, of all steps (part of them forward only), of judging."""
        used = self._resolved(task, backbone)
        assert used.steps is not None
        assert used.frozen_stages is not None
        frozen = backbone.depths[used.frozen_stages - 1].flops_share
        return training_passes(len(task.train), len(task.val), used.steps, 32, frozen)

    def why_not(self, task: ImageTask, backbone: Backbone) -> str | None:
        """Refuse to freeze none or all of the stages."""
        k = self.frozen_stages
        if k is not None and not 1 <= k < backbone.n_depths:
            return f"frozen_stages must be in 1..{backbone.n_depths - 1}, got {k}"
        return None

    def _resolved(self, task: ImageTask, backbone: Backbone) -> "PartialFineTune":
        return replace(
            self,
            steps=self.steps or default_steps(len(task.train), 32),
            frozen_stages=self.frozen_stages or backbone.n_depths // 2,
        )
