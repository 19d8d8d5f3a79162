"""Export of a run's classifier: ONNX, timm, or a hub folder with a model card."""

import json
from pathlib import Path
from typing import Any

from advisor.tune.run_dir.directory import RunDir
from strategies.core.errors import NotApplicable, StorageError, unknown_name
from strategies.models.classifier import ImageClassifier
from strategies.models.export import FORMATS, export

HUB = "hf"


def export_run(run: Path, kind: str, out: Path | None) -> Path:
    """Export the best classifier of a run as ``onnx``, ``timm`` or ``hf``.

    ``hf`` is a folder for the Hugging Face hub: timm's format, which
    ``timm.create_model("hf-hub:owner/name")`` loads, with a model card.

    Returns
    -------
    The file or folder that was written.

    Raises
    ------
    NotApplicable
        If the format is unknown or cannot hold this classifier.
    StorageError
        If the run is not finished, or `out` already exists.
    """
    formats = (*FORMATS, HUB)
    if kind not in formats:
        raise NotApplicable(unknown_name("format", kind, formats))
    folder = RunDir.open(run)
    if not folder.is_done():
        raise StorageError(f"{run} is not finished. Finish it with tl-auto resume {run}.")
    classifier = ImageClassifier.load(folder.classifier())
    name = "classifier.onnx" if kind == "onnx" else kind
    target = out or folder.path / "export" / name
    if target.exists():
        raise StorageError(f"{target} already exists. Give another path with --out.")
    target.parent.mkdir(parents=True, exist_ok=True)
    export(classifier, target, "timm" if kind == HUB else kind)
    if kind == HUB:
        card = model_card(classifier, folder.read("outcome.json"), folder.read("advice.json"))
        (target / "README.md").write_text(card, encoding="utf-8")
    return target


def model_card(
    classifier: ImageClassifier, outcome: dict[str, Any], advice: dict[str, Any]
) -> str:
    """Return a model card: dataset, strategy, accuracy with intervals, limits, licences."""
    backbone, split = classifier.backbone, advice["split"]
    licence = backbone.licence
    front = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "transfer-learning"],
        "license": licence if licence != "not stated" else "other",
    }
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    settings = ", ".join(f"{k} {v}" for k, v in classifier.hyperparameters.items())
    names = ", ".join(classifier.classes[:50])
    if len(classifier.classes) > 50:
        names += f" and {len(classifier.classes) - 50} more"
    return f"""---
{header}
---

# {outcome["dataset"]}

Image classifier for {len(classifier.classes)} classes: {names}.

| | |
|---|---|
| strategy | `{classifier.strategy}` ({settings}) |
| backbone | `{backbone.name}`, {backbone.input_px} px, weights from {backbone.source} |
| dataset | {split["description"]} |
| test accuracy | {_test_accuracy(outcome)} |
| validation accuracy (used for selection) | {_percent(outcome["best"]["val_accuracy"])} |

Intervals are 90% intervals (Wilson). The classifier was evaluated once on the test images, after
model selection.

## Limits

- It was evaluated on images from the same source as its training images. Its accuracy on other
  images is unknown.
- It always predicts one of its classes, even for an image that belongs to none of them.
{_findings(advice)}
## Licence

Pretrained weights: {licence}. The program that wrote this card does not know the licence of the
training images: state it here before you publish.
"""


def _test_accuracy(outcome: dict[str, Any]) -> str:
    test = outcome["test"]
    if test is None:
        return "not measured (no test images)"
    balanced = f"balanced accuracy (mean per-class recall) {100 * test['mean_per_class']:.1f}%"
    return f"{_percent(test['accuracy'])} on {test['n']} images; {balanced}"


def _percent(interval: dict[str, float]) -> str:
    low, mid, high = (100 * interval[k] for k in ("low", "mid", "high"))
    return f"{mid:.1f}% [{low:.1f}, {high:.1f}]"


def _findings(advice: dict[str, Any]) -> str:
    issues = [f for f in advice["findings"] if f["severity"] == "issue"]
    return "".join(f"- {f['title']} ({f['code']}): {f['detail']}\n" for f in issues)
