"""Model card of the classifier of a run: one text for people, with metadata for the hub.

The metadata is the front matter that the Hugging Face hub reads, with the test scores as a
``model-index`` (https://huggingface.co/docs/hub/model-cards).
"""

import importlib
import re
from collections.abc import Sequence
from typing import Any

from advisor.report.markdown import bullets, code, escape, finding_text, table
from advisor.report.to_json import versions
from advisor.report.words import (
    final_fit_words,
    pairs,
    size_line,
    soup_words,
    transfer_words,
)
from advisor.types.outcome import Outcome
from advisor.types.summary import backbone_used, headline
from strategies.core.metrics import LEVEL, Interval
from strategies.models.catalogue import CATALOGUE

TASK = "image-classification"
EXPORTS = "## Exports"
NOT_STATED = "not stated"


def model_card(outcome: Outcome) -> str:
    """Return the model card of the classifier of a run: Markdown with front matter.

    References
    ----------
    M. Mitchell et al., Model cards for model reporting, 2019.
    """
    advice, best, test = outcome.advice, outcome.best, outcome.test
    classes = list(advice.profile.n_by_class.items())
    recalls = {} if test is None else dict(zip(test.classes, test.per_class, strict=True))
    rows = []
    for name, n in classes:
        recall = recalls.get(name)
        rows.append((name, f"{n:,}", "not evaluated" if recall is None else recall.percent()))
    fitted = ", ".join(pairs(best.hyperparameters.items()))
    parts = [
        f"# Image classifier: {escape(advice.dataset)}",
        bullets(
            [
                f"Task: single-label image classification, {len(classes)} classes.",
                f"Method: {best.strategy} on {backbone_used(outcome)} at "
                f"{advice.profile.input_px} px with {fitted}.",
                f"Created by tl-advisor, seed {advice.seed}; "
                + ", ".join(f"{name} {number}" for name, number in versions().items()),
            ]
        ),
        "" if advice.void is None else f"**{escape(headline(advice))}**",
        "## Dataset",
        escape(size_line(advice)) + ".",
        "## Evaluation",
        bullets(_results(outcome)),
        f"Intervals are {100 * LEVEL:.0f}% intervals. Test images, if there are any, are read "
        "once, after model selection.",
        table(("class", "images (train and validation)", "test accuracy"), rows),
        "## Limits",
        "The classifier predicts one of its classes for every image, even for an image that "
        "belongs to none of them. `tl-auto predict` says which images are unlike the training "
        "images, if classifier.json has `reliability`. Its accuracy holds for images from the "
        "same source as the test images. Findings about the dataset:",
        "\n\n".join(finding_text(f) for f in advice.findings) or "None.",
        "## Use",
        code("tl-auto predict RUN_FOLDER IMAGE_OR_FOLDER"),
        "## Licence",
        f"Pretrained weights: {escape(_licence(outcome))}. The licence of the training images is "
        "not known here: state it before you publish the classifier.",
    ]
    return with_front_matter(
        "\n\n".join(part for part in parts if part) + "\n",
        licence=_licence(outcome),
        library_name="tl-advisor",
        tags=["transfer-learning"],
        **_model_index(outcome),
    )


def with_front_matter(card: str, *, licence: str, **entries: Any) -> str:
    """Return a card whose front matter has the given entries, besides those that it has already.

    Parameters
    ----------
    licence
        Licence of the pretrained weights; the hub knows one that is not stated as "other".
    entries
        Arguments of huggingface_hub's ``ModelCardData``.
    """
    hub: Any = importlib.import_module("huggingface_hub")  # its import takes half a second
    has_entries = card.startswith("---\n")
    made = hub.ModelCard(card if has_entries else f"---\n{{}}\n---\n{card}")
    known = made.data.to_dict()
    made.data.pipeline_tag = TASK
    made.data.license = "other" if licence == NOT_STATED else licence
    tags = [TASK, *known.get("tags", ()), *entries.pop("tags", ())]
    made.data.tags = list(dict.fromkeys(tags))
    for name, value in entries.items():
        setattr(made.data, name, value)
    return f"---\n{made.data.to_yaml()}\n---\n\n{made.text.lstrip()}"


def with_export(
    card: str, name: str, lines: Sequence[str], use: str = "", *, alone: bool = False
) -> str:
    """Return a card that tells about an exported file, in its section "Exports".

    What it told about a file of the same name is replaced.

    Parameters
    ----------
    lines
        Facts about the file, a sentence each.
    use
        Code in Python that uses it; empty: none.
    alone
        Whether to leave out what the card told about other files.
    """
    before, _, section = card.partition(f"\n{EXPORTS}\n")
    title = f"### {escape(name)}\n"
    others = [] if alone else [f"### {part}".strip() for part in section.split("### ")[1:]]
    kept = [part for part in others if not f"{part}\n".startswith(title)]
    example = f"```python\n{use}\n```" if use else ""
    own = "\n\n".join(part for part in (title.strip(), bullets(lines), example) if part)
    return "\n\n".join([before.rstrip(), EXPORTS, *kept, own]) + "\n"


def without_examples(card: str) -> str:
    """Return a card without the examples of findings, which name files of this machine."""
    return "".join(x for x in card.splitlines(keepends=True) if not x.startswith("Examples: "))


def _model_index(outcome: Outcome) -> dict[str, Any]:
    """Return the test scores as the hub shows them; nothing without test images."""
    test = outcome.test
    if test is None:
        return {}
    scores: list[tuple[str, str, float, Interval | None]] = [
        ("accuracy", "Test accuracy", test.accuracy.mid, test.accuracy),
        ("balanced_accuracy", "Balanced accuracy", test.mean_per_class, None),
        ("expected_calibration_error", "ECE", test.calibration_error, None),
    ]
    if test.top_5 is not None:
        scores.insert(1, ("top_5_accuracy", "Top-5 accuracy", test.top_5.mid, test.top_5))
    hub: Any = importlib.import_module("huggingface_hub")
    results = [
        hub.EvalResult(
            task_type=TASK,
            task_name="Image classification",
            dataset_type="imagefolder",
            # Programs that do not know front matter render it as Markdown.
            dataset_name=re.sub("[<>]", "", outcome.advice.dataset) or "dataset",
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
            metric_args=_certainty(interval, test.n),
        )
        for kind, name, value, interval in scores
    ]
    model = f"{outcome.best.strategy} on {backbone_used(outcome)}"
    return {"model_name": model, "eval_results": results}


def _certainty(interval: Interval | None, n: int) -> dict[str, Any]:
    if interval is None:
        return {"n_images": n}
    return {"n_images": n, "interval_90": [round(interval.low, 6), round(interval.high, 6)]}


def _results(outcome: Outcome) -> list[str]:
    test, val = outcome.test, outcome.best.val_accuracy
    lines = []
    if test is not None:
        balanced, error = 100 * test.mean_per_class, 100 * test.calibration_error
        lines.append(f"Test accuracy {test.accuracy.percent()} on {test.n:,} images.")
        if test.top_5 is not None:
            lines.append(f"Top-5 accuracy {test.top_5.percent()}.")
        lines.append(f"Balanced accuracy (mean per-class recall) {balanced:.1f}%.")
        lines.append(f"Expected calibration error {error:.1f} points.")
    else:
        lines.append("There were no test images: the accuracy on new images is not known.")
    if val is not None:
        lines.append(f"Validation accuracy (used for model selection) {val.percent()}.")
    if outcome.transfer_gain is not None:
        lines.append(f"Transfer gain {transfer_words(outcome.transfer_gain)}.")
    soup = soup_words(outcome)
    if soup is not None:
        lines.append(soup)
    if (words := final_fit_words(outcome)) is not None:
        lines.append(f"Final fit: {words}.")
    return lines


def _licence(outcome: Outcome) -> str:
    """Return the licence of the pretrained weights."""
    used = backbone_used(outcome)
    if used in CATALOGUE:
        return CATALOGUE[used].licence
    licences = (c.value for c in outcome.advice.choices if c.name == "weights' licence")
    return next(licences, NOT_STATED)
