"""LoRA: what it trains, what remains of it, and where it applies."""

import copy
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strategies import lora
from strategies.core.context import RunContext, TrainingResources
from strategies.core.errors import NotApplicable
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.lora import Lora
from strategies.models.architectures.anatomy import projections
from strategies.models.backbone import Backbone
from strategies.models.classifier import WEIGHTS_FILE, ImageClassifier, make_network
from strategies.models.stages import stages
from strategies.training.optimiser import freeze, make_optimiser
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from strategies.training.weight_averaging import average_weights

RECIPE = Recipe(steps=6, lr=1e-2, batch_size=8, lora_rank=4, weight_decay=0.0)
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture
def vit(load_random: Callable[..., Backbone]) -> Backbone:
    """A vision transformer of six blocks with random weights."""
    return load_random("test_vit")


@needs_peft
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_the_merged_network_predicts_as_before_merging(
    name: str, load_random: Callable[..., Backbone], ctx: RunContext
) -> None:
    found = load_random(name)
    network = make_network(found, (found.n_depths,), 3).eval()
    images = torch.randn(4, 3, found.input_px, found.input_px)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("gamma"):  # layer scales of almost zero hide what a block does
                parameter.fill_(0.1)
        plain = network(images)
        with Lora().adapted(network, found, RECIPE):
            assert torch.equal(network(images), plain)  # the change starts at zero
            for key, parameter in network.named_parameters():
                if "lora_B" in key:
                    nn.init.normal_(parameter, std=0.1)
            before = network(images)
        after = network(images)
    assert (before - plain).abs().max() > 0.01
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@needs_peft
def test_the_merged_network_has_the_modules_and_weights_of_an_ordinary_one(vit: Backbone) -> None:
    network = make_network(vit, (vit.n_depths,), 3)
    ordinary = make_network(vit, (vit.n_depths,), 3)
    with Lora().adapted(network, vit, RECIPE):
        assert network.state_dict().keys() != ordinary.state_dict().keys()
    assert network.state_dict().keys() == ordinary.state_dict().keys()
    assert [type(m) for m in network.modules()] == [type(m) for m in ordinary.modules()]


@needs_peft
def test_only_the_matrices_and_the_head_are_trained_without_weight_decay(vit: Backbone) -> None:
    network = make_network(vit, (vit.n_depths,), 3)
    names = projections(network.body.net, vit.input_px)
    with Lora().adapted(network, vit, RECIPE):
        stage = stages(network.body.net, vit)
        freeze(network.body, stage, RECIPE)
        trained = {k: p for k, p in network.named_parameters() if p.requires_grad}
        groups = make_optimiser(network.body, network.head, stage, RECIPE).param_groups
    expected = {
        f"body.net.{name}.lora_{matrix}.default.weight" for name in names for matrix in "AB"
    }
    assert trained.keys() == {*expected, "head.weight", "head.bias"}
    assert {min(p.shape) for k, p in trained.items() if "lora" in k} == {RECIPE.lora_rank}
    assert {g["weight_decay"] for g in groups} == {0.0}
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in trained.values()}


@needs_peft
def test_a_fit_changes_the_projections_and_nothing_else_of_the_body(
    vit: Backbone, small_dataset: Dataset, ctx: RunContext, tmp_path: Path
) -> None:
    fitted = Lora.from_hyperparameters({"steps": 3}).fit(small_dataset.hide_test(), vit, ctx)
    before = make_network(vit, (vit.n_depths,), 3).body.net.state_dict()
    after = fitted.network.body.net.state_dict()
    changed = {k for k, value in before.items() if not torch.equal(value, after[k])}
    names = projections(fitted.network.body.net, vit.input_px)
    assert changed == {f"{name}.weight" for name in names}
    fitted.save(tmp_path / "saved")
    assert b"lora_" not in (tmp_path / "saved" / WEIGHTS_FILE).read_bytes()
    paths = [p.path for p in small_dataset.val]
    loaded = ImageClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict_proba(paths), fitted.predict_proba(paths))


class Interrupted(Exception):
    """Raised by a callback."""


def _trained(
    vit: Backbone, dataset: Dataset, recipe: Recipe, ctx: RunContext
) -> dict[str, Tensor]:
    with ctx.seeded():
        network = make_network(vit, (vit.n_depths,), dataset.n_classes)
        with Lora().adapted(network, vit, recipe):
            train(network, dataset, vit, recipe, ctx)
    return network.state_dict()


@needs_peft
def test_an_interrupted_run_resumes_and_ends_with_the_same_weights(
    vit: Backbone, small_dataset: Dataset, ctx: RunContext, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, ema=0.5)

    def stop(round_: int, accuracy: float | None) -> None:
        if round_ == 3:
            raise Interrupted

    expected = _trained(vit, small_dataset, recipe, ctx)
    saved = replace(ctx, training=TrainingResources(tmp_path / "training.safetensors"))
    with pytest.raises(Interrupted):
        _trained(vit, small_dataset, recipe, replace(saved, reporter=Reporter(on_epoch=stop)))
    assert saved.training.checkpoint is not None
    assert saved.training.checkpoint.exists()
    rounds: list[int] = []
    count = Reporter(on_epoch=lambda round_, _: rounds.append(round_))
    found = _trained(vit, small_dataset, recipe, replace(saved, reporter=count))
    assert rounds[0] == 4
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@needs_peft
def test_classifiers_of_two_fits_are_averaged_like_others(
    vit: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    one, two = (
        Lora.from_hyperparameters({"steps": 3, "lora_rank": rank}).fit(
            small_dataset.hide_test(), vit, ctx
        )
        for rank in (2, 8)
    )
    found = average_weights([one, two], small_dataset, ctx).network.state_dict()
    states = [copy.deepcopy(c.network.state_dict()) for c in (one, two)]
    key = "body.net.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(found[key], (states[0][key] + states[1][key]) / 2)


def test_it_is_not_for_convolutional_networks(small_dataset: Dataset, backbone: Backbone) -> None:
    reason = Lora().inapplicable(small_dataset, backbone)
    assert reason is not None
    assert f"{backbone.name} is a convolutional network" in reason


@needs_peft
def test_a_rank_below_one_is_refused(small_dataset: Dataset, vit: Backbone) -> None:
    assert Lora().inapplicable(small_dataset, vit) is None
    reason = Lora.from_hyperparameters({"lora_rank": 0}).inapplicable(small_dataset, vit)
    assert reason == "lora_rank must be at least 1, got 0"


def test_without_peft_it_says_what_to_install(
    small_dataset: Dataset, vit: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    monkeypatch.setitem(lora.importlib.sys.modules, "peft", None)  # type: ignore[attr-defined]
    reason = Lora().inapplicable(small_dataset, vit)
    assert reason is not None
    assert "pip install 'tl-advisor[lora]'" in reason
    with pytest.raises(NotApplicable, match="pip install"):
        Lora.from_hyperparameters({"steps": 1}).fit(small_dataset.hide_test(), vit, ctx)


def test_settings_of_whole_layers_are_refused() -> None:
    with pytest.raises(NotApplicable, match="lora_rank"):
        Lora.from_hyperparameters({"drop_path": 0.1})
