"""Images of a run, in ``images.csv``: path, label, split, digest, and the prediction on test.

The file is a manifest (`strategies.data.manifests`): a dataset with the same splits can be loaded
from it.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from advisor.tune.run_dir.directory import RunDir
from strategies.core.atomic_files import atomic_file
from strategies.core.errors import StorageError
from strategies.data.dataset import Dataset

IMAGES_FILE = "images.csv"
_HEADER = ["path", "label", "split", "digest", "predicted", "probability"]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image of a run.

    Attributes
    ----------
    split
        train, val or test.
    digest
        SHA-256 of the file.
    predicted
        For a test image, the class that the classifier predicted when it was evaluated; None for
        others.
    """

    path: Path
    label: str
    split: str
    digest: str
    predicted: str | None


def write_images(
    folder: RunDir, dataset: Dataset, predicted: Mapping[Path, tuple[str, float]]
) -> None:
    """Write the images of a run.

    Parameters
    ----------
    predicted
        Predicted class and its probability, by path of the test images that were evaluated.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    target = folder.path / IMAGES_FILE
    splits = (("train", dataset.train), ("val", dataset.val), ("test", dataset.test or ()))
    with folder.storage_errors(target), atomic_file(target) as file:
        # File names need not be valid UTF-8: keep their bytes.
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADER)
        for split, images in splits:
            for image in images:
                path, label = str(image.path.absolute()), dataset.classes[image.label]
                guess, probability = predicted.get(image.path, ("", None))
                share = "" if probability is None else f"{probability:.6f}"
                writer.writerow([path, label, split, image.digest, guess, share])
        text.flush()
        text.detach()


def image_rows(folder: RunDir) -> Iterator[ImageRow]:
    """Yield the images of a finished run, one by one.

    Raises
    ------
    StorageError
        If the file is missing or damaged.
    """
    path = folder.path / IMAGES_FILE
    if not path.is_file():
        raise StorageError(
            f"{path} does not exist: the run is not finished, or an earlier release made it."
        )
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.DictReader(file):
                name, label, split, digest, predicted, _ = (row[column] for column in _HEADER)
                yield ImageRow(Path(name), label, split, digest, predicted or None)
    except (OSError, LookupError, TypeError, csv.Error) as error:
        raise StorageError(f"{path} cannot be read: {error!r}") from error
