"""A pilot: a short full fine-tuning and an SVM on some images, against a probe on the same."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advisor.measure.paired import loss_gain, paired_gain
from advisor.types.advice import Decision
from advisor.types.options import PilotMode
from advisor.types.profile import Pilot, Profile
from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.core.metrics import Interval, Labels, Scores, proportion
from strategies.core.progress import ignore_progress
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.data.image import Split
from strategies.full_fine_tune import FullFineTune
from strategies.heads.cross_validation import CrossValidated, fold_numbers
from strategies.layer_svm import LayerSVM
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone

MAX_TRAIN, MAX_JUDGED = 300, 300
STEPS, MAX_INPUT_PX = 150, 96
"""As many steps as the shortest fine-tuning by default: after fewer, what training gains does not
show yet. About a minute on two cores; a network that must have its own input size keeps it."""
FEWEST = 24
"""With fewer images a pilot could not tell anything."""
FEWEST_JUDGED = 2
"""Nor does one image tell how far chance reaches, and lone ones are not judged."""
BATCH = 32
TIME_SHARE = 0.1
"""What "auto" spends at most of the time that is left, where there is a limit."""
PATIENCE_GMACS = 2000.0
"""What it spends at most where there is none: work and not seconds, so that the same images get
the same advice on a busy machine. Two cores do some 20 to 30 of these a second."""
PASSES_A_STEP = 3.0
"""A trained image costs its forward pass and a backward pass of about twice that."""
PROBED = 5.0
"""Passes of an image for the probe and the SVM: half are learnt from, most of these in views."""
PILOTED = "full_fine_tune"
WORTH_KNOWING = 0.01
"""By more than this in accuracy it must be able to win."""
TINY = 1e-12
"""The least probability that a loss is taken of."""


def why_no_pilot(
    mode: PilotMode, decision: Decision, profile: Profile, gmacs: float, seconds_left: float
) -> str | None:
    """Return the reason against a pilot, for people, or None if there shall be one.

    It is worth its time where the strategy that it tries could turn the decision: where it leads
    a cheaper one, or its interval reaches clearly above the one that leads.

    Parameters
    ----------
    gmacs
        Multiplications and additions of one forward pass at the profile's input size, in billions.
    seconds_left
        Until the deadline; infinite without one.
    """
    if mode == "off":
        return "not wanted (--pilot off)"
    tuned = next((r for r in decision.recommendations if r.strategy == PILOTED), None)
    if tuned is None:
        return f"{PILOTED} does not apply here"
    if profile.n < FEWEST:
        return f"fewer than {FEWEST} images tell nothing"
    if mode == "on":
        return None
    best = decision.recommendations[0]
    if tuned is not best and tuned.accuracy.high <= best.accuracy.mid + WORTH_KNOWING:
        return f"{PILOTED} is not expected to win clearly over {best.strategy}"
    if math.isinf(seconds_left):
        is_dear = pilot_passes(profile, PASSES_A_STEP) * gmacs > PATIENCE_GMACS
        return "this network is too large for a quick one; --pilot on runs it" if is_dear else None
    if pilot_seconds(profile) > TIME_SHARE * seconds_left:
        return "it would take longer than its share of the time; --pilot on runs it"
    return None


def pilot_seconds(profile: Profile) -> float:
    """Predict what a pilot takes here, by what was measured."""
    passes = pilot_passes(profile, profile.passes_per_trained_image or 8.0)
    return passes * profile.ms_per_image / 1000 + 2 * profile.build_s


def pilot_passes(profile: Profile, per_trained_image: float) -> float:
    """Return the cost of a pilot in forward passes of one image at the profile's input size."""
    side = min(profile.input_px, MAX_INPUT_PX) / profile.input_px if is_any_size(profile) else 1.0
    n = min(profile.n, MAX_TRAIN + MAX_JUDGED)
    return (STEPS * BATCH * per_trained_image + PROBED * n) * side**2


def is_any_size(profile: Profile) -> bool:
    """Whether the network takes images of any size: those with BatchNorm are convolutional."""
    return profile.similarity is not None and profile.similarity.shift_nats is not None


def run_pilot(
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    hyperparameters: Mapping[str, Any],
    *,
    any_size: bool,
) -> Pilot | None:
    """Fine-tune briefly on half of the images, or fewer, and judge on others.

    None where there are fewer than `FEWEST` images, or next to none that can be judged.

    Parameters
    ----------
    hyperparameters
        Of a full fine-tuning; its steps are cut to `STEPS`.
    any_size
        Whether the network takes images of any size; then they are given small.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    if len(dataset.fit_split) < FEWEST:
        return None
    start = time.monotonic()
    learnt, judged = _halves(dataset, ctx.seed)
    if len(judged) < FEWEST_JUDGED:
        return None
    small = replace(dataset, train=learnt, val=(), test=None, pairs=())
    if any_size:
        backbone = replace(backbone, input_px=min(backbone.input_px, MAX_INPUT_PX))
    used = {**hyperparameters, "steps": STEPS}
    quiet = replace(ctx, on_epoch=_ignore, on_progress=ignore_progress)
    labels = labels_of(judged)

    def judge(strategy: Strategy) -> _Judged:
        fitted = strategy.fit(small, backbone, quiet)
        return _Judged(fitted.predict_proba([p.path for p in judged]), labels)

    tuned, svm, probe = judge(FullFineTune(**used)), judge(LayerSVM()), judge(LinearProbe())
    return Pilot(
        gain=paired_gain(tuned.hits, probe.hits),
        accuracy=tuned.accuracy,
        n_train=len(learnt),
        n_judged=len(judged),
        hyperparameters=used,
        svm_accuracy=svm.accuracy,
        svm_gain=paired_gain(svm.hits, probe.hits),
        loss_gain=loss_gain(tuned.losses, probe.losses),
        svm_loss_gain=loss_gain(svm.losses, probe.losses),
        seconds=round(time.monotonic() - start, 3),
    )


@dataclass(frozen=True)
class _Judged:
    """What a strategy said of the judged images: probabilities, (n, classes)."""

    probabilities: Scores
    labels: Labels

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Which images it had right, (n,)."""
        found: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.labels
        return found

    @property
    def accuracy(self) -> Interval:
        """Share of the images that it had right."""
        return proportion(float(self.hits.mean()), len(self.labels))

    @property
    def losses(self) -> NDArray[np.float64]:
        """Log-loss of every image in nats, (n,), at the temperature that fits them best."""
        scores = np.log(np.maximum(self.probabilities, TINY))
        return CrossValidated(scores[None], self.labels, (0.0,)).losses


def _halves(dataset: Dataset, seed: int) -> tuple[Split, Split]:
    """Draw what is learnt from and what is judged; a class of one image is only learnt."""
    images = dataset.fit_split
    half = fold_numbers(labels_of(images), seed, 2, groups_of(images))
    order = np.random.default_rng(seed).permutation(len(images))
    seen = {p.label for p, h in zip(images, half, strict=True) if h == 0}
    learnt = [i for i in order if half[i] == 0 or images[i].label not in seen]
    judged = [i for i in order if half[i] == 1 and images[i].label in seen]
    return (
        tuple(images[i] for i in sorted(_first_of_each(learnt, images, MAX_TRAIN))),
        tuple(images[i] for i in sorted(judged[:MAX_JUDGED])),
    )


def _first_of_each(rows: list[int], images: Split, most: int) -> list[int]:
    """Keep the first rows, but at least one of every class."""
    first = {images[i].label: i for i in reversed(rows)}
    return list(dict.fromkeys([*first.values(), *rows]))[: max(most, len(first))]


def _ignore(epoch: int, accuracy: float | None) -> None:
    """Hear of an epoch of the pilot: a search has nothing to learn from it."""
