"""Export of a run's classifier to a file or folder, checked, and with a model card."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor.deploy.exports.agreement import (
    Agreement,
    CheckImages,
    check,
    images_of_data,
    images_of_run,
)
from advisor.deploy.exports.hub import Repository, push
from advisor.report.card.model_card import with_export, with_front_matter, without_examples
from advisor.report.files import CARD_NAME
from advisor.tune.run_dir.directory import RunDir
from strategies.core.atomic_files import write_text
from strategies.core.errors import NotApplicable, StorageError, TransferError, unknown_name
from strategies.core.progress import OnProgress, ignore
from strategies.models.classifier import ImageClassifier
from strategies.models.formats.export import (
    FORMATS,
    add_metadata,
    check_precision,
    export,
    predictor,
)

HUB = "hf"
KINDS = (*FORMATS, HUB)
_LIBRARIES: Mapping[str, str] = {"onnx": "onnx", "pt2": "pytorch", "timm": "timm", HUB: "timm"}
_READ = """import numpy as np
from PIL import Image, ImageOps

image = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
"""
_USE: Mapping[str, str] = {
    "onnx": f"""{_READ}
import onnxruntime

session = onnxruntime.InferenceSession("{{name}}")
probabilities = session.run(["probabilities"], {{{{"images": image[np.newaxis]}}}})[0]
""",
    "pt2": f"""{_READ}
import torch

classifier = torch.export.load("{{name}}").module()
probabilities = classifier(torch.tensor(image).unsqueeze(0))
""",
    "timm": """import timm

classifier = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(classifier))
""",
}


@dataclass(frozen=True)
class Exported:
    """A classifier that was exported.

    Attributes
    ----------
    path
        The file or folder.
    kind
        One of `KINDS`.
    n_bytes
        Size of the file, or of all files of the folder.
    agreement
        Result of the check; None if it was not checked.
    reason
        Why it was not checked, as a sentence.
    url
        Address of the repository that it was pushed to.
    """

    path: Path
    kind: str
    precision: str
    n_bytes: int
    agreement: Agreement | None
    reason: str | None
    url: str | None = None

    def warnings(self) -> list[str]:
        """Return what is wrong with it, as sentences; empty: nothing is known to be."""
        return [] if self.agreement is None else self.agreement.warnings(self.precision)

    def sentences(self) -> list[str]:
        """Return format and size, and what the check found."""
        lines = [f"Format {self.kind}, {self.precision}, {self.n_bytes / 1e6:.1f} MB."]
        if self.agreement is None:
            return [*lines, f"Not checked against tl-auto predict. {self.reason}"]
        return [*lines, *self.agreement.sentences()]

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "path": str(self.path),
            "format": self.kind,
            "precision": self.precision,
            "bytes": self.n_bytes,
            "check": None if self.agreement is None else self.agreement.record(),
            "not_checked": self.reason,
            "warnings": self.warnings(),
            "url": self.url,
        }


def export_run(
    run: Path,
    kind: str,
    out: Path | None = None,
    *,
    precision: str = "float32",
    check_data: Path | None = None,
    repository: Repository | None = None,
    on_progress: OnProgress = ignore,
) -> Exported:
    """Export the best classifier of a run, and check that the export predicts the same.

    ``hf`` is a folder for the Hugging Face hub: timm's format, which
    ``timm.create_model("hf-hub:owner/name")`` loads, with a model card. The result of the check
    stands in the metadata of the export and in the run's model card.

    Parameters
    ----------
    run
        A run folder, or a classifier folder, which has no images to check the export on.
    check_data
        Dataset to check it on. None: the validation images of the run.
    repository
        Where to upload it with its model card; None: nowhere.

    Raises
    ------
    NotApplicable
        If the format or precision is unknown, or cannot hold this classifier.
    StorageError
        If the run is not finished, or `out` already exists.
    TransferError
        If it cannot be uploaded. A float32 export that disagrees is not.
    """
    if kind not in KINDS:
        raise NotApplicable(unknown_name("format", kind, KINDS))
    format = "timm" if kind == HUB else kind
    check_precision(format, precision)
    classifier_folder, default = _folders(run)
    target = _new(out or default / _name(kind, precision))
    classifier = ImageClassifier.load(classifier_folder)
    images = _images(run, check_data, classifier)
    card_file = classifier_folder / CARD_NAME
    card = _read_card(card_file, is_needed=kind == HUB or repository is not None)
    on_progress("export", 0, 0)
    export(classifier, target, format, precision=precision, calibration=images.calibration)
    result = None
    if images.reason is None:
        result = check(predictor(target, format), classifier, images, on_progress)
    done = Exported(target, kind, precision, _n_bytes(target), result, images.reason)
    checked = {"check": done.record()["check"], "not_checked": done.reason}
    add_metadata(target, format, checked)
    if card is None:
        return done
    write_text(card_file, with_export(card, target.name, done.sentences() + done.warnings()))
    own = _own_card(card, classifier, done)
    if kind == HUB:
        write_text(target / CARD_NAME, own)
    return done if repository is None else replace(done, url=_pushed(done, own, repository))


def _pushed(done: Exported, card: str, repository: Repository) -> str:
    if done.precision == "float32" and done.agreement is not None and not done.agreement.agrees:
        raise TransferError(
            f"{done.path} was not pushed: {' '.join(done.warnings())} {' '.join(done.sentences())}"
        )
    return push(done.path, card, repository)


def _folders(run: Path) -> tuple[Path, Path]:
    """Return the classifier's folder, and the folder of its exports."""
    if RunDir(run).is_run() or not (run / "classifier.json").is_file():
        folder = RunDir.open(run)
        if not folder.is_done():
            raise StorageError(f"{run} is not finished. Finish it with tl-auto resume {run}.")
        return folder.classifier(), folder.path / "export"
    return run, run / "export"


def _new(target: Path) -> Path:
    if target.exists():
        raise StorageError(f"{target} already exists. Give another path with --out.")
    return target


def _name(kind: str, precision: str) -> str:
    suffix = "" if precision == "float32" else f"-{precision}"
    return f"classifier{suffix}.{kind}" if kind in ("onnx", "pt2") else kind


def _images(run: Path, data: Path | None, classifier: ImageClassifier) -> CheckImages:
    """Return the images to check an export on."""
    if data is not None:
        return images_of_data(data, classifier.classes)
    if not RunDir(run).is_run():
        reason = f"{run} is no run folder, which lists images. Give some with --check DATA."
        return CheckImages("images", (), (), reason)
    try:
        return images_of_run(RunDir(run))
    except StorageError as error:
        return CheckImages("images", (), (), f"{error} Give others with --check DATA.")


def _read_card(path: Path, *, is_needed: bool) -> str | None:
    if not is_needed and not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


def _own_card(card: str, classifier: ImageClassifier, done: Exported) -> str:
    """Return the card of a repository that holds just this export."""
    kind = "timm" if done.kind == HUB else done.kind
    library = _LIBRARIES[kind]
    use = _USE[kind].format(name=done.path.name)
    facts = [*done.sentences(), *done.warnings()]
    return with_front_matter(
        with_export(without_examples(card), done.path.name, facts, use, alone=True),
        licence=classifier.backbone.licence,
        library_name=library,
        tags=[library],
    )


def _n_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
