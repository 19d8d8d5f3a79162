"""Pairs of images mixed into one, and their labels: timm's mixup and cutmix, seeded."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from timm.data.mixup import Mixup
from torch import Tensor

from strategies.training.recipe import Recipe


def mixed(
    images: Tensor, labels: Tensor, n_classes: int, recipe: Recipe, seed: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mix every image of a batch with another; all as it is if the recipe mixes none.

    Parameters
    ----------
    images, labels
        Shapes (n, 3, h, w), changed in place, and (n,); n is even.

    Returns
    -------
    The images, and the shares of classes in them, (n, n_classes).

    References
    ----------
    H. Zhang et al., mixup: Beyond empirical risk minimization, 2018. S. Yun et al., CutMix,
    ICCV 2019.
    """
    if not recipe.mixes:
        return images, labels
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(  # type: ignore[no-untyped-call]
        recipe.mixup, recipe.cutmix, label_smoothing=0.0, num_classes=n_classes
    )
    with _numpy_seeded(seed):
        images, shares = mix(images, labels)
    return images, shares


@contextlib.contextmanager
def _numpy_seeded(seed: Sequence[int]) -> Iterator[None]:
    """Seed numpy's global generator, which timm draws from; leave it as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
