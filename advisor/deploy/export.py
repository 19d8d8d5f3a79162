"""A run's classifier in the formats of others, with a card that says what it is."""

import json
from pathlib import Path
from typing import Any

from advisor.tune.run_dir.directory import RunDir
from strategies.core.errors import NotApplicable, StorageError, unknown_name
from strategies.models.classifier import ImageClassifier
from strategies.models.export import FORMATS, export

HUB = "hf"


def export_run(run: Path, kind: str, out: Path | None) -> Path:
    """Write a run's best classifier: ``onnx``, ``timm``, or ``hf``, a folder for a model hub.

    The hub's folder is timm's (``timm.create_model("hf-hub:owner/name")`` loads it) with a model
    card.

    Returns
    -------
    The file or folder that was written.

    Raises
    ------
    NotApplicable
        If the format is unknown or cannot hold this classifier.
    StorageError
        If there is no finished run, or `out` is there already.
    """
    known = (*FORMATS, HUB)
    if kind not in known:
        raise NotApplicable(unknown_name("format", kind, known))
    folder = RunDir.open(run)
    if not folder.is_done():
        raise StorageError(f"{run} has no outcome yet. Finish it by tl-auto resume {run}.")
    classifier = ImageClassifier.load(folder.classifier())
    name = "classifier.onnx" if kind == "onnx" else kind
    target = out or folder.path / "export" / name
    if target.exists():
        raise StorageError(f"{target} exists. Give another place with --out.")
    target.parent.mkdir(parents=True, exist_ok=True)
    export(classifier, target, "timm" if kind == HUB else kind)
    if kind == HUB:
        card = model_card(classifier, folder.read("outcome.json"), folder.read("advice.json"))
        (target / "README.md").write_text(card, encoding="utf-8")
    return target


def model_card(
    classifier: ImageClassifier, outcome: dict[str, Any], advice: dict[str, Any]
) -> str:
    """Return a model card: data, strategy, accuracy with intervals, limits, licences."""
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

Tells {len(classifier.classes)} classes of images apart: {names}.

| | |
|---|---|
| strategy | `{classifier.strategy}` ({settings}) |
| backbone | `{backbone.name}`, {backbone.input_px} px, weights from {backbone.source} |
| data | {split["description"]} |
| accuracy on test | {_judged(outcome)} |
| accuracy on validation, which chose it | {_percent(outcome["best"]["val_accuracy"])} |

Intervals are 90% intervals (Wilson). The test images were judged once, after everything was
chosen.

## Limits

- It was judged on images like those it was trained on. On others, accuracy is unknown.
- It always names one of its classes, also for images of none of them.
{_findings(advice)}
## Licence

The pretrained weights: {licence}. The licence of the training images is not known to the program
that wrote this card; state it here before you publish.
"""


def _judged(outcome: dict[str, Any]) -> str:
    test = outcome["test"]
    if test is None:
        return "not measured: there were no test images"
    per_class = f"{100 * test['mean_per_class']:.1f}% mean per class"
    return f"{_percent(test['accuracy'])} on {test['n']} images; {per_class}"


def _percent(interval: dict[str, float]) -> str:
    low, mid, high = (100 * interval[k] for k in ("low", "mid", "high"))
    return f"{mid:.1f}% [{low:.1f}, {high:.1f}]"


def _findings(advice: dict[str, Any]) -> str:
    issues = [f for f in advice["findings"] if f["severity"] == "issue"]
    return "".join(f"- {f['title']} ({f['code']}): {f['detail']}\n" for f in issues)
