"""Mixup and CutMix: images and soft labels are mixed alike, reproducibly."""

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.core.errors import NotApplicable
from strategies.training.mixup import mixed
from strategies.training.recipe import Recipe

LABELS = torch.tensor([0, 1, 2, 0])


def _recipe(**mixing: float) -> Recipe:
    return Recipe(steps=10, lr=1e-3, **mixing)


def _constant_images() -> Tensor:
    """Return images of a constant value each: the number of the image."""
    return torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()


def test_without_mixup_and_cutmix_images_and_labels_are_unchanged() -> None:
    images = _constant_images()
    found, labels = mixed(images, LABELS, 3, _recipe(), [0])
    assert found is images
    assert labels is LABELS


@pytest.mark.parametrize("step", range(5))
def test_mixup_weights_images_and_labels_alike(step: int) -> None:
    found, shares = mixed(_constant_images(), LABELS, 3, _recipe(mixup=1.0), [0, step])

    colours = found.mean(dim=(1, 2, 3))
    assert torch.allclose(found, colours.view(4, 1, 1, 1).expand_as(found))
    own = (colours - torch.arange(4.0).flip(0)) / (torch.arange(4.0) - torch.arange(4.0).flip(0))
    onehot = torch.eye(3)[LABELS]
    expected = own[:, None] * onehot + (1 - own[:, None]) * onehot.flip(0)
    assert torch.allclose(shares, expected, atol=1e-5)
    assert 0 < float(own[0]) < 1


@pytest.mark.parametrize("step", range(5))
def test_cutmix_weights_labels_by_the_area_of_each_image(step: int) -> None:
    found, shares = mixed(_constant_images(), LABELS, 3, _recipe(cutmix=1.0), [0, step])

    own = (found[:, 0] == torch.arange(4.0).view(4, 1, 1)).float().mean(dim=(1, 2))
    other = (found[:, 0] == torch.arange(4.0).flip(0).view(4, 1, 1)).float().mean(dim=(1, 2))
    assert torch.allclose(own + other, torch.ones(4))
    onehot = torch.eye(3)[LABELS]
    expected = own[:, None] * onehot + other[:, None] * onehot.flip(0)
    assert torch.allclose(shares, expected, atol=1e-5)


def test_mixing_depends_on_the_seed_and_leaves_numpys_global_generator_unchanged() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002

    recipe = _recipe(mixup=0.4, cutmix=1.0)
    first, again, other = (
        mixed(_constant_images(), LABELS, 3, recipe, [0, s])[0] for s in (1, 1, 2)
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_invalid_mixing_parameters_are_rejected(kind: str) -> None:
    with pytest.raises(NotApplicable, match="must be even, got 3"):
        Recipe(steps=10, lr=1e-3, batch_size=3, **{kind: 0.4})
    with pytest.raises(NotApplicable, match=f"{kind} must be at least 0, got -1"):
        _recipe(**{kind: -1.0})
