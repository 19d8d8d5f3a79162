"""Export to ``.pt2`` files of torch.export: they are used with torch alone."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from strategies.core.atomic_files import atomic_file
from strategies.core.errors import StorageError
from strategies.data.decoding import Pixels
from strategies.models.classifier import ImageClassifier
from strategies.models.formats.graph import ExportedClassifier, example_images, in_order, quiet
from strategies.models.reliability.outputs import Outputs, Predictor

_EXAMPLES = "/sample_inputs/"
METADATA = "metadata.json"
"""Name of the extra file with the metadata: ``torch.export.load(path, extra_files=...)``."""


def write(classifier: ImageClassifier, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the graph of `ExportedClassifier`, which ``torch.export.load`` reads.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    images, sizes = example_images()
    with quiet():
        program = torch.export.export(
            ExportedClassifier(classifier), (images,), dynamic_shapes=(sizes,)
        )
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
    _save(program, path, metadata)


def add_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Add metadata to a file; entries of the same name are replaced.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    program, known = _load(path)
    _save(program, path, {**known, **metadata})


def predictor(path: Path) -> Predictor:
    """Return what computes the outputs of an image with the file."""
    model = _load(path)[0].module()

    @torch.inference_mode()
    def predict(image: Pixels) -> Outputs:
        found = [x.numpy() for x in in_order(model(torch.tensor(image).unsqueeze(0)))]
        return Outputs(found[0], found[1] if len(found) > 1 else None)

    return predict


def _load(path: Path) -> tuple[torch.export.ExportedProgram, dict[str, Any]]:
    extra = {METADATA: ""}
    with quiet():
        program = torch.export.load(path, extra_files=extra)
    known: dict[str, Any] = json.loads(extra[METADATA])
    return program, known


def _save(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    text = json.dumps(metadata, ensure_ascii=False)
    written = io.BytesIO()
    program.example_inputs = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            torch.export.save(program, written, extra_files={METADATA: text})
        with atomic_file(path) as file:
            _copy_without_examples(written, file)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def _copy_without_examples(archive: BinaryIO, target: BinaryIO) -> None:
    """Copy an archive, with an empty entry for the example inputs: torch pickles even None."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            content = b"" if _EXAMPLES in entry.filename else source.read(entry)
            copy.writestr(entry.filename, content)
