"""All layers trained from the pretrained weights."""

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
class FullFineTune(Strategy):
    """Probe-initialised head, then head and body together.

    Attributes
    ----------
    lr
        Peak learning rate of the body. Near ImageNet small steps are safe (1e-4), far from it
        large ones are needed (1e-3).
    head_lr_factor
        The head learns this many times faster.
    steps
        Optimiser steps of 32 pictures; None: eight epochs, within 150 and 600.
    batch_norm
        "frozen" keeps ImageNet's statistics, "trained" uses those of each batch.
    hflip
        Whether train pictures are mirrored at random (wrong for letters and hands).
    """

    lr: float = 3e-4
    head_lr_factor: float = 1.0
    steps: int | None = None
    batch_norm: BatchNorm = "frozen"
    label_smoothing: float = 0.0
    hflip: bool = False

    name: ClassVar[str] = "full_fine_tune"
    summary: ClassVar[str] = "all layers trained from the pretrained weights, head first"
    references: ClassVar[tuple[str, ...]] = (
        "A. Kumar et al., Fine-tuning can distort pretrained features, ICLR 2022",
        "S. Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019",
    )
    selects_on_val: ClassVar[bool] = True

    @classmethod
    def suggest(cls, trial: BaseTrial, task: ImageTask, backbone: Backbone) -> Self:
        """Draw learning rates, steps, BatchNorm policy, smoothing and mirroring."""
        base = default_steps(len(task.train), 32)
        return cls(
            lr=trial.suggest_float("lr", 3e-5, 3e-3, log=True),
            head_lr_factor=trial.suggest_float("head_lr_factor", 1.0, 10.0, log=True),
            steps=trial.suggest_int("steps", base // 2, 2 * base),
            batch_norm=cast(
                BatchNorm, trial.suggest_categorical("batch_norm", ["frozen", "trained"])
            ),
            label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.2),
            hflip=trial.suggest_categorical("hflip", [False, True]),
        )

    def fit(self, task: ImageTask, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train; the weights that were best on val are kept."""
        used = replace(self, steps=self.steps or default_steps(len(task.train), 32))
        network = fine_tune(task, backbone, used._recipe(), ctx)
        return ImageClassifier(
            task.classes,
            backbone,
            (backbone.n_depths,),
            network,
            self.name,
            used.hyperparameters(),
        )

    def image_passes(self, task: ImageTask, backbone: Backbone) -> float:
        """Return the passes of the probe, of all steps, and of judging on val."""
        steps = self.steps or default_steps(len(task.train), 32)
        return training_passes(len(task.train), len(task.val), steps, 32, frozen=0.0)

    def _recipe(self) -> Recipe:
        assert self.steps is not None
        return Recipe(
            steps=self.steps,
            lr=self.lr,
            head_lr_factor=self.head_lr_factor,
            batch_norm=self.batch_norm,
            label_smoothing=self.label_smoothing,
            hflip=self.hflip,
        )
