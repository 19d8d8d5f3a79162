"""Terminal reports: within 80 columns, without colour, without missing measurements."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from advisor.report.card.model_card import model_card
from advisor.report.charts.run import gain_chart
from advisor.report.charts.text import depth_profile, quadrant_map
from advisor.report.facts import main_facts, measurements
from advisor.report.markdown import advice_markdown, escape
from advisor.report.terminal import print_advice, print_outcome
from advisor.types.advice import Advice, Rejection
from advisor.types.profile import BackboneScore
from strategies.core.metrics import Interval
from tests.advisor.profiles import profile_of
from tests.advisor.report.made import full_profile, hostile_advice, made_advice, made_outcome


def printed(advice: Advice) -> str:
    page = io.StringIO()
    print_advice(Console(file=page, width=80, no_color=True), advice)
    return page.getvalue()


@pytest.mark.parametrize(
    "advice",
    [
        made_advice(full_profile(["ants", "bees"])),
        made_advice(profile_of(backbone_statistics=None)),
        made_advice(profile_of(n_classes=136, similarity=0.01)),
        made_advice(profile_of(n_per_class=5000, similarity=0.5)),
    ],
    ids=["full", "random weights", "many classes", "large"],
)
def test_the_report_fits_80_columns_and_starts_with_the_recommendation(advice: Advice) -> None:
    lines = printed(advice).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"made: {advice.best.strategy}: expected accuracy ")
    for heading in ("Why", "All strategies", "Measurements", "Reproduce"):
        assert heading in lines


def test_rejected_strategies_and_the_command_are_listed() -> None:
    advice = made_advice(profile_of(), command="tl-advise data --seed 0")
    advice = replace(advice, rejections=(Rejection("layer_svm", "too few images"),))
    text = printed(advice)
    assert "left out: layer_svm: too few images" in text
    assert "tl-advise data --seed 0" in text
    assert "k-NN" not in text
    assert "random weights" not in text
    assert "random weights" in printed(made_advice(full_profile(["a", "b"])))


def test_compared_backbones_are_ranked() -> None:
    scores = (
        BackboneScore(
            "tf_efficientnet_lite2", 1, Interval(0.9, 0.92, 0.94), None, 20.0, 0.9, 260, 6.1, 1
        ),
        BackboneScore(
            "tf_efficientnet_lite0",
            2,
            Interval(0.8, 0.82, 0.84),
            Interval(0.05, 0.1, 0.15),
            9.0,
            0.4,
            224,
            4.7,
            2,
        ),
    )
    advice = made_advice(profile_of(), backbones=scores)
    text = printed(advice)
    baseline = "tf_efficientnet_lite2 (6.1M parameters), tf_efficientnet_lite0 (4.7M parameters)"
    assert baseline in " ".join(text.split())
    assert escape(baseline) in advice_markdown(advice)
    assert "+10.0 [+5.0, +15.0]" in text
    assert text.index("tf_efficientnet_lite2 ") < text.index("tf_efficientnet_lite0 ")


def test_a_pretraining_domain_other_than_imagenet_is_said_in_every_report() -> None:
    clip = profile_of(backbone="vit", pretrained_on="laion2b, in1k")
    said = "similarity is measured to ImageNet; vit was pretrained on laion2b, in1k"
    advice = made_advice(clip)
    assert said in " ".join(printed(advice).split())
    assert escape(said[1:]) in advice_markdown(advice)
    assert said in [fact.detail for fact in measurements(advice)]
    for domain in ("in1k", None):
        assert "pretrained on" not in printed(made_advice(profile_of(pretrained_on=domain)))


def test_the_backbones_own_statistics_and_the_scores_for_show_are_named_as_such() -> None:
    advice = made_advice(full_profile(["a", "b"]))
    text = printed(advice)
    assert "BatchNorm shift" in text
    assert "(shown only, decides nothing)" in text
    assert "shown only, decides nothing" in advice_markdown(advice)
    bare = made_advice(profile_of(backbone_statistics=None))
    assert "BatchNorm shift" not in printed(bare)


def test_rich_markup_in_a_name_is_printed_literally() -> None:
    advice = replace(hostile_advice(), dataset="[bold red]x[/]")
    assert printed(advice).startswith("[bold red]x[/]: ")
    page = io.StringIO()
    print_outcome(Console(file=page, width=80), made_outcome(advice))
    assert "[bold red]x[/]" in page.getvalue()


def advice_at(size: float, similarity: float) -> Advice:
    decades = Interval(size - 0.5, size, size + 0.5)
    advice = made_advice(profile_of(similarity=similarity))
    return replace(advice, quadrant=replace(advice.quadrant, size_decades=decades))


@pytest.mark.parametrize(
    ("size", "similarity", "left", "upper"),
    [
        (-2, 0.9, True, True),
        (2, 0.95, False, True),
        (-1, 0.1, True, False),
        (1.5, 0.3, False, False),
        (9, 0.9, False, True),
        (-9, 0.04, True, False),
    ],
)
def test_the_map_puts_the_point_into_its_quadrant(
    size: float, similarity: float, left: bool, upper: bool
) -> None:
    lines = quadrant_map(advice_at(size, similarity))
    middle = next(i for i, line in enumerate(lines) if "┼" in line)
    (row,) = [i for i, line in enumerate(lines) if "●" in line]
    assert (row < middle) == upper
    assert (lines[row].index("●") < lines[middle].index("┼")) == left
    assert len({len(line) for line in lines[1:-2]}) == 1
    assert sum(line.count("full_fine_tune") for line in lines) == 2


def test_the_depth_profile_has_a_row_for_every_depth() -> None:
    profile = full_profile(["a", "b"])
    lines = depth_profile(profile)
    assert len(lines) == 1 + len(profile.depth_names)
    assert "random weights" in lines[0]
    for line, name in zip(lines[1:], profile.depth_names, strict=True):
        assert name in line


def test_a_control_below_the_majority_class_gives_no_transfer_gain_in_any_report() -> None:
    base = made_outcome(made_advice(full_profile(["ants", "bees"])))
    assert base.transfer_gain is not None
    undetermined = replace(base.transfer_gain, verdict="undetermined", per_class=())
    outcome = replace(base, transfer_gain=undetermined)
    page = io.StringIO()
    print_outcome(Console(file=page, width=80, no_color=True), outcome)
    (fact,) = [f for f in main_facts(outcome.advice, outcome) if f.label == "Transfer gain"]

    reason = "the control (random weights) did not beat the majority class"
    assert f"not determined: {reason}" in " ".join(page.getvalue().split())
    assert f"not determined: {escape(reason)}" in model_card(outcome)
    assert fact.value == "not determined"
    assert fact.detail.startswith(reason)
    assert gain_chart(outcome) is None
