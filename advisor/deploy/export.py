"""Export of a run's classifier: ONNX, timm, or a hub folder with a model card."""

import json
from pathlib import Path

from advisor.report.files import CARD_FILE
from advisor.tune.run_dir.directory import RunDir
from strategies.core.atomic_files import write_text
from strategies.core.errors import NotApplicable, StorageError, unknown_name
from strategies.models.backbone import NOT_STATED
from strategies.models.classifier import ImageClassifier
from strategies.models.formats.export import FORMATS, export

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
        write_text(target / "README.md", _hub_card(classifier, folder))
    return target


def _hub_card(classifier: ImageClassifier, folder: RunDir) -> str:
    """Return the model card of the run with the front matter that the Hugging Face hub reads."""
    path = folder.path / CARD_FILE
    try:
        card = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error
    licence = classifier.backbone.licence
    front = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "transfer-learning"],
        "license": licence if licence != NOT_STATED else "other",
    }
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    return f"---\n{header}\n---\n\n{card}"
