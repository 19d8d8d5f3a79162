"""Mixup and CutMix: timm's implementation with a seed of its own."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from strategies.models.architectures.timm_zoo import timm_module
from strategies.training.recipe import Recipe


def mixed(
    images: Tensor, labels: Tensor, n_classes: int, recipe: Recipe, seed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Apply mixup or CutMix to a batch; return it unchanged if the recipe uses neither.

    Parameters
    ----------
    images, labels
        Shapes (n, 3, h, w) and (n,); n is even. The images are changed in place.

    Returns
    -------
    The images, and their soft labels, (n, n_classes); the given labels if nothing is mixed.

    References
    ----------
    H. Zhang et al., mixup: Beyond empirical risk minimization, 2018. S. Yun et al., CutMix,
    ICCV 2019.
    """
    if not recipe.mixes:
        return images, labels
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = timm_module("timm.data.mixup").Mixup(
        recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=n_classes
    )
    with _numpy_seeded(seed):
        images, soft_labels = mix(images, labels)
    return images, soft_labels


@contextlib.contextmanager
def _numpy_seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed numpy's global generator, which timm draws from, and restore its state afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
