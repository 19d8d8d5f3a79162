"""Strategies that train some of the network's weights leave all others as they were."""

from dataclasses import replace

import pytest
import torch

from strategies.autoencoder_probe import AutoencoderProbe
from strategies.core.context import RunContext
from strategies.core.errors import NotApplicable
from strategies.data.dataset import Dataset
from strategies.fine_tuning import FineTuning
from strategies.first_stages import FirstStages
from strategies.full_fine_tune import FullFineTune
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.stages import stages
from strategies.norm_tune import NormTune
from strategies.partial_fine_tune import PartialFineTune
from strategies.training.defaults import TrainMeasurements
from strategies.training.recipe import RecipeDraft

NORM = "Norm"
SIX_DEPTHS = TrainMeasurements(100, 6, 224, 100, 0.9, 0.1, None)


def changed_weights(
    strategy: FineTuning, dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> set[str]:
    """Fit a strategy; return the names of the body's weights that it changed."""
    fitted = strategy.fit(dataset.hide_test(), backbone, ctx)
    before = make_network(backbone, (backbone.n_depths,), dataset.n_classes).body.net.state_dict()
    after = fitted.network.body.net.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_norm_tuning_changes_normalisation_layers_and_biases_only(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    strategy = NormTune.from_hyperparameters({"steps": 3})
    changed = changed_weights(strategy, small_dataset, backbone, ctx)
    modules = dict(backbone.build().named_modules())
    in_norms = {n for n in changed if NORM in type(modules[n.rpartition(".")[0]]).__name__}
    assert len(in_norms) > 20
    assert all(n.endswith(".bias") for n in changed - in_norms)
    assert not any("running" in n for n in changed)


def test_the_first_stages_are_trained_and_the_later_ones_are_not(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    strategy = FirstStages.from_hyperparameters({"steps": 3, "last_trained_stage": 2})
    changed = changed_weights(strategy, small_dataset, backbone, ctx)
    stage = stages(backbone.build(), backbone)
    assert {stage[name.rpartition(".")[0]] for name in changed} == {1, 2}


def test_an_open_number_of_first_stages_is_a_third_of_the_depths() -> None:
    assert FirstStages().resolved(100, SIX_DEPTHS).last_trained_stage == 2
    four = FirstStages.from_hyperparameters({"last_trained_stage": 4})
    assert four.resolved(100, SIX_DEPTHS).last_trained_stage == 4


def test_the_code_of_the_auto_encoder_does_not_depend_on_the_labels(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    n = small_dataset.n_classes
    others = tuple(replace(p, label=(p.label + 1) % n) for p in small_dataset.train)
    fits: list[ImageClassifier] = [
        AutoencoderProbe(steps=3).fit(replace(small_dataset.hide_test(), train=t), backbone, ctx)
        for t in (small_dataset.train, others)
    ]
    one, other = (f.network.body.state_dict() for f in fits)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    heads = [f.network.head.weight for f in fits]
    assert not torch.equal(*heads)


def test_a_setting_that_a_strategy_would_ignore_is_refused() -> None:
    with pytest.raises(NotApplicable, match="mixup is not a hyperparameter of norm_tune"):
        NormTune(replace(NormTune.default_recipe(), mixup=0.2))
    with pytest.raises(NotApplicable, match="frozen_stages is not a hyperparameter"):
        FullFineTune(RecipeDraft(label_smoothing=0.1, frozen_stages=2))


def test_norm_tuning_takes_half_of_the_steps_of_full_fine_tuning() -> None:
    steps = [kind().resolved(1000, SIX_DEPTHS).steps for kind in (NormTune, FullFineTune)]
    assert steps == [125, 250]


def test_the_fewer_weights_are_trained_the_cheaper_a_step_is(
    small_dataset: Dataset, backbone: Backbone
) -> None:
    def passes(kind: type[FineTuning], **given: int) -> float:
        strategy = kind.from_hyperparameters({"steps": 100, **given})
        return strategy.image_passes(small_dataset, backbone)

    shares = [depth.flops_share for depth in backbone.depths]
    full = passes(FullFineTune)
    assert full - passes(NormTune) == pytest.approx(100 * 32)
    later = passes(FirstStages, last_trained_stage=2)
    assert full - later == pytest.approx(100 * 32 * (1 - shares[1]))
    partial = passes(PartialFineTune, frozen_stages=2)
    assert full - partial == pytest.approx(100 * 32 * 2 * shares[1])
