"""LP-FT: what a draft leaves open is chosen from the images, and nothing else is measured."""

from dataclasses import replace

import pytest

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.training import lp_ft
from strategies.training.defaults import FAR_LR, FAR_SHIFT, NEAR_LR, NEAR_SHIFT
from strategies.training.lp_ft import Probe, complete, fit_probe
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


def test_the_learning_rate_follows_the_domain_shift_of_the_images_whatever_the_backbone(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = fit_probe(small_dataset, backbone, ctx)
    without_batchnorm = replace(probe, features=replace(probe.features, moments=None))
    draft = RecipeDraft(hflip=False)

    def chosen(probe: Probe) -> float:
        return complete(draft, probe, small_dataset, backbone, ctx).lr

    assert chosen(without_batchnorm) == chosen(probe)
    for shift, lr in ((NEAR_SHIFT, NEAR_LR), (FAR_SHIFT, FAR_LR)):
        monkeypatch.setattr(lp_ft, "domain_shift", lambda images, ctx, shift=shift: shift)
        assert chosen(replace(without_batchnorm, accuracy=1.0)) == lr


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
