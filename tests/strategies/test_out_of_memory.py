"""Every pass without gradients: out of memory it goes on in parts, with the same results."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from strategies import autoencoder_probe
from strategies.autoencoder_probe import AutoencoderProbe
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.errors import TrainingDiverged, TransferError
from strategies.data.dataset import Dataset
from strategies.models import features
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.features import eval_pixels, extract_features
from strategies.models.multi_view import extract_views
from strategies.models.network import Network, scores_of
from strategies.models.stages import stages
from strategies.training.frozen_activations import cached_prefix
from strategies.training.optimiser import Updater
from strategies.training.recipe import Recipe
from strategies.training.reinit import reinitialise
from strategies.training.trainer import train


class Memory:
    """Memory for a number of images: a pass of more fails in the middle of the network."""

    def __init__(self) -> None:
        self.most: int | None = None
        self.passed: list[int] = []
        self.failed: list[int] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        is_late = isinstance(module, nn.BatchNorm2d) and module.num_features == 320
        if not is_late or torch.is_grad_enabled():
            return
        n = len(inputs[0])
        if self.most is not None and n > self.most:
            self.failed.append(n)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        self.passed.append(n)


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Return the memory of all networks of a test; without a limit at first."""
    memory = Memory()
    handle = register_module_forward_pre_hook(memory)
    yield memory
    handle.remove()


Pass = Callable[[Dataset, Backbone, RunContext], list[NDArray[np.float32]]]


def network_of(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> Network:
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
    return network.eval()


def classifier_of(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
    network = network_of(dataset, backbone, ctx)
    return ImageClassifier(
        dataset.classes, backbone, (backbone.n_depths,), network, "a_strategy", {}
    )


def feature_pass(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    found = extract_features(dataset.train, backbone, ctx)
    assert found.moments is not None
    return [*found.pooled, found.moments.mean, found.moments.square]


def view_pass(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> list[NDArray[np.float32]]:
    found = extract_views(dataset.train, backbone, ctx, 6)
    return [*found.mean, *found.grid]


def rounding_pass(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    body, _ = features._prepare(backbone, ctx)
    low = replace(ctx, precision=torch.bfloat16)
    return [features._rounding_error(dataset.train, body, backbone, low)]


def score_pass(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> list[NDArray[np.float32]]:
    return [scores_of(network_of(dataset, backbone, ctx), dataset.train, backbone, ctx)]


def prediction_pass(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    classifier = classifier_of(dataset, backbone, ctx)
    return [classifier.predict_proba([image.path for image in dataset.train])]


def classification_pass(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    pixels = np.stack([eval_pixels(image.path, backbone) for image in dataset.train])
    return [classifier_of(dataset, backbone, ctx).classify(pixels)]


def validation_pass(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    judged = replace(dataset, val=dataset.train)
    recipe = Recipe(1, 1e-9, batch_size=1)
    scores = train(network_of(dataset, backbone, ctx), judged, backbone, recipe, ctx)
    assert scores is not None
    return [scores]


def frozen_stages_pass(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    network = network_of(dataset, backbone, ctx)
    stage = stages(network.body.net, backbone)
    recipe = Recipe(20, 0.01, batch_size=8, frozen_stages=backbone.n_depths - 1)
    judged = replace(dataset, val=dataset.train)
    found = cached_prefix(network, stage, judged, backbone, recipe, ctx)
    return [np.float32(found.train), np.float32(found.val_rows)]


def refitting_pass(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    recipe = Recipe(1, 0.01)
    return [reinitialise(network_of(dataset, backbone, ctx), dataset, backbone, recipe, ctx)]


def code_pass(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> list[NDArray[np.float32]]:
    strategy = AutoencoderProbe(depth=backbone.n_depths - 1, lr=1e-9, steps=1)
    fitted = strategy.fit(dataset, backbone, ctx)
    return [fitted.network.head.weight.detach().numpy()]


PASSES = (
    feature_pass,
    view_pass,
    rounding_pass,
    score_pass,
    prediction_pass,
    classification_pass,
    validation_pass,
    frozen_stages_pass,
    refitting_pass,
)


def with_own_cache(ctx: RunContext, folder: Path) -> RunContext:
    return replace(ctx, cache=ArrayCache(folder))


@pytest.mark.parametrize("run", PASSES)
def test_a_pass_in_parts_gives_the_results_of_a_whole_one(
    run: Pass, small_dataset: Dataset, backbone: Backbone, ctx: RunContext, memory: Memory
) -> None:
    folder = ctx.cache.path.parent
    whole = run(small_dataset, backbone, with_own_cache(ctx, folder / "whole"))
    n_whole, memory.most = sum(memory.passed), 5
    memory.passed.clear()
    parts = run(small_dataset, backbone, with_own_cache(ctx, folder / "parts"))

    assert memory.failed
    assert max(memory.passed) <= 5
    assert sum(memory.passed) == n_whole
    for expected, found in zip(whole, parts, strict=True):
        assert expected.shape == found.shape
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("run", [*PASSES, code_pass])
def test_a_single_image_that_does_not_fit_is_a_clear_error(
    run: Pass, small_dataset: Dataset, backbone: Backbone, ctx: RunContext, memory: Memory
) -> None:
    network_of(small_dataset, backbone, ctx)  # loads the weights
    memory.most = 0
    with pytest.raises(TransferError, match="cpu is out of memory even with one image at a time"):
        run(small_dataset, backbone, ctx)
    assert memory.failed[-1] == 1


def test_codes_of_an_autoencoder_are_computed_in_parts(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, memory: Memory
) -> None:
    memory.most = 8
    (weight,) = code_pass(small_dataset, backbone, ctx)
    assert memory.failed
    assert max(memory.passed) <= 8
    assert np.isfinite(weight).all()


def test_training_steps_of_an_autoencoder_go_on_in_parts(
    small_dataset: Dataset, tiny: Backbone, ctx: RunContext
) -> None:
    passed: list[int] = []

    def limited(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.GELU) and torch.is_grad_enabled():
            passed.append(len(inputs[0]))
            if passed[-1] > 10:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    handle = register_module_forward_pre_hook(limited)
    try:
        AutoencoderProbe(steps=2).fit(small_dataset, tiny, ctx)
    finally:
        handle.remove()
    assert [n for n in passed if n > 10] == [32, 16]  # both before the first step is done
    assert sum(n for n in passed if n <= 10) == 2 * 2 * 32  # two layers, two steps


def test_parts_of_an_autoencoder_add_up_to_the_gradient_of_the_batch(
    small_dataset: Dataset, tiny: Backbone, ctx: RunContext
) -> None:
    with ctx.seeded():
        network = make_network(tiny, (1,), 2, "grid")
        model = autoencoder_probe._Autoencoder(
            network.body, autoencoder_probe._decoder(network.body, tiny, ctx)
        )
        images = torch.randn(9, 3, 32, 32)
    model.eval()  # BatchNorm would see each part on its own
    optimiser = torch.optim.AdamW(model.parameters())
    updater = Updater(model, optimiser, 1.0, torch.float32)

    def gradient(n_parts: int) -> list[Tensor]:
        autoencoder_probe._compute_gradient(model, updater, images, ctx, n_parts)
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for whole, parts in zip(gradient(1), gradient(4), strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_an_autoencoder_with_gradients_that_are_not_finite_says_so(
    small_dataset: Dataset, tiny: Backbone, ctx: RunContext
) -> None:
    def broken(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        grows = isinstance(module, nn.GELU) and torch.is_grad_enabled()
        return inputs[0] * float("inf") if grows else None

    handle = register_module_forward_pre_hook(broken)
    try:
        with pytest.raises(TrainingDiverged, match=r"not finite at step 0.*Use a smaller one"):
            AutoencoderProbe(steps=2).fit(small_dataset, tiny, ctx)
    finally:
        handle.remove()


def test_a_pass_remembers_the_size_that_fits(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, memory: Memory
) -> None:
    memory.most = 10
    extract_features(small_dataset.fit_split, backbone, ctx)
    assert memory.failed == [32, 16]
    assert memory.passed == [8, 8, 8, 8, len(small_dataset.fit_split) - 32]


def test_statistics_count_no_image_twice_if_a_part_does_not_fit(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, memory: Memory
) -> None:
    recipe = Recipe(1, 0.01, batch_norm="reestimated")

    def reestimated() -> list[nn.BatchNorm2d]:
        network = network_of(small_dataset, backbone, ctx)
        reinitialise(network, small_dataset, backbone, recipe, ctx)
        return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]

    whole = reestimated()
    memory.most = 20
    parts = reestimated()

    assert memory.failed == 2 * [len(small_dataset.train)]  # in each pass over the images
    assert {int(m.num_batches_tracked or 0) for m in whole} == {1}
    assert {int(m.num_batches_tracked or 0) for m in parts} == {2}
    first, again = whole[0], parts[0]
    assert first.running_mean is not None
    assert again.running_mean is not None
    torch.testing.assert_close(again.running_mean, first.running_mean, rtol=1e-4, atol=1e-5)
