"""Reading and writing of the suite's rows: results of fits, and what was measured before them."""

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from advisor.decide.candidates import Candidate, DecisionInputs
from advisor.types.profile import Pilot, Profile
from advisor.types.similarity import IMAGENET
from strategies.registry import get_strategy

HERE = Path(__file__).resolve().parent
RESULTS, EVIDENCE = HERE / "results.jsonl", HERE / "evidence.jsonl"

Row = dict[str, Any]
Case = tuple[str, int, int, int]
"""Dataset, images per class, seed, input size in px."""
SUITE_PX = (224, 160, 96)
"""Input sizes of the suite."""
T = TypeVar("T")


def case_of(row: Row) -> Case:
    """Return the case that a row belongs to."""
    return row["set"], row["n_per_class"], row["seed"], row["input_px"]


def pack_hits(hits: NDArray[np.bool_]) -> str:
    """Return which test images were classified correctly as hexadecimal bytes, a bit per image."""
    return np.packbits(hits).tobytes().hex()


def hits_of(row: Row) -> NDArray[np.bool_]:
    """Return which test images a fit classified correctly, (n_test,), in the split's order."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), dtype=np.uint8))
    return bits[: row["n_test"]].astype(bool)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a JSON Lines file; none if the file does not exist yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def append_row(path: Path, row: Row) -> None:
    """Append a row to a JSON Lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def inputs_record(inputs: DecisionInputs) -> Row:
    """Return the inputs of a decision as plain values, rounded.

    The names of similar source classes are left out.
    """
    profile = inputs.profile
    statistics = profile.backbone_statistics
    if statistics is not None and statistics.head is not None:
        head = replace(statistics.head, nearest_source_classes=())
        profile = replace(profile, backbone_statistics=replace(statistics, head=head))
    candidates = {
        c.name: {
            "hyperparameters": c.strategy.hyperparameters(),
            "image_passes": c.image_passes,
            "inapplicable": c.inapplicable,
        }
        for c in inputs.full_size
    }
    pilot = None if inputs.pilot is None else _rounded(asdict(inputs.pilot))
    return {"profile": _rounded(asdict(profile)), "candidates": candidates, "pilot": pilot}


def read_inputs(path: Path = EVIDENCE) -> dict[Case, DecisionInputs]:
    """Return the inputs of the decision of every case; a later row replaces an earlier one."""
    return {case_of(row): _inputs_of(row) for row in read_rows(path)}


def _inputs_of(row: Row) -> DecisionInputs:
    """Return the inputs that a row records; the suite's smaller input sizes are added.

    A fit costs as many forward passes as before, each in proportion to the number of pixels.
    """
    own_px = row["input_px"]
    candidates = []
    for name, about in row["candidates"].items():
        start = get_strategy(name).from_hyperparameters(about["hyperparameters"])
        for px in (own_px, *(s for s in SUITE_PX if s < own_px)):
            cost = about["image_passes"] * (px / own_px) ** 2
            candidates.append(Candidate(start.with_input_px(px), cost, about["inapplicable"]))
    profile = _build(Profile, _current(row["profile"]))
    return DecisionInputs(profile, tuple(candidates), _build(Pilot, row["pilot"]))


def _current(profile: Row) -> Row:
    """Return a recorded profile in today's form.

    Rows until 2026-11-29 were measured on the embedded network. Their similarity holds the
    statistics of the backbone, and is that of today if they were measured at 96 px.
    """
    similarity = profile["similarity"]
    if "evidence" not in similarity:
        return profile
    return {
        **profile,
        "pretrained_on": IMAGENET,
        "similarity": {**similarity, "n_images": min(profile["n_measured"], 1000)},
        "backbone_statistics": {**similarity, "head": similarity["evidence"]},
    }


def _rounded(value: Any) -> Any:
    """Return a nested value with all floats rounded to five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(v) for key, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value


def _build(kind: Any, value: Any) -> Any:
    """Rebuild nested dataclasses, tuples and mappings of a type from plain values."""
    origin, inner = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if origin in (Union, types.UnionType):
        return _build(next(k for k in inner if k is not type(None)), value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [f.name for f in fields(kind) if f.name in value]
        return kind(**{name: _build(hints[name], value[name]) for name in known})
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_build(k, v) for k, v in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _build(inner[1], v) for key, v in value.items()}
    return value
