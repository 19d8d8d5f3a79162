"""Model card: metadata for the hub, and the section of exports."""

from dataclasses import replace

from huggingface_hub import ModelCard

from advisor.report.card.model_card import (
    model_card,
    with_export,
    with_front_matter,
    without_examples,
)
from tests.advisor.report.made import full_profile, hostile_advice, made_advice, made_outcome


def test_the_hub_reads_the_test_scores_of_a_card() -> None:
    outcome = made_outcome(made_advice(full_profile(["ants", "bees"])))
    assert outcome.test is not None

    card = ModelCard(model_card(outcome))

    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "apache-2.0"
    found = {r.metric_type: r for r in card.data.eval_results}
    assert found["accuracy"].metric_value == round(outcome.test.accuracy.mid, 6)
    assert found["accuracy"].metric_args["n_images"] == outcome.test.n
    assert found["accuracy"].dataset_name == outcome.advice.dataset
    assert found["accuracy"].dataset_split == "test"
    assert card.data.model_name.startswith(outcome.best.strategy)


def test_a_run_without_test_images_has_no_model_index() -> None:
    outcome = replace(made_outcome(hostile_advice()), test=None)
    card = ModelCard(model_card(outcome))
    assert card.data.eval_results is None
    assert "model-index" not in card.content


def test_a_card_keeps_its_text_and_scores_when_metadata_is_added() -> None:
    before = ModelCard(model_card(made_outcome(hostile_advice())))
    after = ModelCard(
        with_front_matter(before.content, licence="not stated", library_name="onnx", tags=["x"])
    )
    assert after.text.strip() == before.text.strip()
    assert after.data.library_name == "onnx"
    assert after.data.license == "other"
    assert after.data.tags == [*before.data.tags, "x"]
    assert after.data.eval_results == before.data.eval_results


def test_a_card_of_an_earlier_release_gets_metadata() -> None:
    card = ModelCard(with_front_matter("# Old\n\ntext\n", licence="mit", library_name="timm"))
    assert card.text.strip() == "# Old\n\ntext"
    assert card.data.license == "mit"


def test_an_exported_file_is_described_once_and_others_stay() -> None:
    card = with_export("# Card\n", "a_b.onnx", ["One."], "x = 1")
    card = with_export(card, "c.onnx", ["Two <b>."])
    card = with_export(card, "a_b.onnx", ["Three."])
    assert card.startswith("# Card\n\n## Exports\n")
    assert card.count("a\\_b.onnx") == 1
    assert "One" not in card
    assert "Two \\<b\\>." in card
    alone = with_export(card, "d.onnx", ["Four."], alone=True)
    assert "Three" not in alone
    assert alone.startswith("# Card\n")


def test_a_published_card_names_no_files_of_this_machine() -> None:
    card = model_card(made_outcome(hostile_advice()))
    assert "\nExamples: " in card
    published = without_examples(card)
    assert "Examples: " not in published
    removed = [line for line in card.splitlines() if line not in published.splitlines()]
    assert removed
    assert all(line.startswith("Examples: ") for line in removed)
