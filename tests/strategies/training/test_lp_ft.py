"""LP-FT: what a draft leaves open is chosen from the images, and nothing else is measured."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from timm.layers import DropPath

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.network import Network
from strategies.training import lp_ft
from strategies.training.defaults import (
    DECAY_RANGE,
    FAR_LR,
    FAR_LR_BY_LAYER,
    FAR_SHIFT,
    NEAR_LR,
    NEAR_LR_BY_LAYER,
    NEAR_SHIFT,
)
from strategies.training.lp_ft import Probe, complete, fine_tune, fit_probe
from strategies.training.recipe import Recipe, RecipeDraft


def test_only_open_settings_are_chosen_and_flips_are_measured_only_if_open(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = fit_probe(small_dataset, backbone, ctx)

    def completed(**given: object) -> Recipe:
        return complete(RecipeDraft(**given), probe, small_dataset, backbone, ctx)  # type: ignore[arg-type]

    from_images = completed()

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(lp_ft, "measure_flip_asymmetry", fail)
    for hflip in (False, True):
        given = completed(hflip=hflip)
        assert given.hflip == hflip
        assert (given.lr, given.blend) == (from_images.lr, from_images.blend)
    assert completed(lr=0.5, hflip=False).lr == 0.5
    with pytest.raises(AssertionError, match="measured"):
        completed(lr=0.5, blend=1.0)


def test_the_learning_rate_follows_the_domain_shift_of_the_images(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = fit_probe(small_dataset, backbone, ctx)
    draft = RecipeDraft(hflip=False)

    def chosen(probe: Probe) -> float:
        return complete(draft, probe, small_dataset, backbone, ctx).lr

    for shift, lr in ((NEAR_SHIFT, NEAR_LR), (FAR_SHIFT, FAR_LR)):
        monkeypatch.setattr(lp_ft, "mean_shift", lambda moments, shift=shift: shift)
        assert chosen(replace(probe, accuracy=1.0)) == lr


def test_an_advised_learning_rate_is_not_computed_again(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = fit_probe(small_dataset, backbone, ctx)

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(lp_ft, "fine_tune_defaults", fail)
    monkeypatch.setattr(lp_ft, "measure_flip_asymmetry", fail)
    advised = RecipeDraft(lr=1e-3, blend=0.7, hflip=True)
    found = complete(advised, probe, small_dataset, backbone, ctx)
    assert (found.lr, found.blend, found.hflip) == (1e-3, 0.7, True)
    assert found.steps == 150


def test_a_transformer_gets_the_settings_of_its_architecture(
    load_random: Callable[..., Backbone], small_dataset: Dataset, ctx: RunContext
) -> None:
    vit = load_random("test_vit")
    probe = fit_probe(small_dataset, vit, ctx)
    found = complete(RecipeDraft(hflip=True), probe, small_dataset, vit, ctx)

    assert NEAR_LR_BY_LAYER <= found.lr <= FAR_LR_BY_LAYER
    assert DECAY_RANGE[0] <= found.layer_lr_decay <= DECAY_RANGE[1]
    assert found.by_layer
    assert (found.weight_decay, found.warmup_share) == (0.05, 0.2)


@pytest.mark.parametrize("frozen", [0, 4])
def test_drop_path_grows_with_depth_is_off_in_frozen_stages_and_ends_with_training(
    frozen: int,
    load_random: Callable[..., Backbone],
    small_dataset: Dataset,
    ctx: RunContext,
) -> None:
    vit = load_random("test_vit")
    ordinary = make_network(vit, (vit.n_depths,), 3)
    during: dict[str, float] = {}

    @contextlib.contextmanager
    def unchanged(network: Network, backbone: Backbone, recipe: Recipe) -> Iterator[None]:
        yield

    train = lp_ft.train

    def watched(network: Network, *args: object) -> object:
        drops = ((n, m) for n, m in network.body.net.named_modules() if isinstance(m, DropPath))
        during.update({name: module.drop_prob for name, module in drops})
        return train(network, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lp_ft, "train", watched)
        draft = RecipeDraft(
            steps=3, lr=1e-4, blend=1.0, hflip=False, drop_path=0.2, frozen_stages=frozen
        )
        network, _ = fine_tune(small_dataset, vit, draft, ctx, unchanged)

    rates = np.linspace(0, 0.2, 6)
    places = [f"blocks.{i}.drop_path{j}" for i in range(frozen, 6) for j in (1, 2)]
    assert during == {place: pytest.approx(rates[int(place.split(".")[1])]) for place in places}
    assert [type(m) for m in network.modules()] == [type(m) for m in ordinary.modules()]
