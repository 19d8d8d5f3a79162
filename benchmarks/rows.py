"""Reading and writing of the suite's rows: results of fits, and what was measured before them."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from advisor.decide.candidates import Candidate, DecisionInputs
from advisor.types.profile import Profile
from advisor.types.similarity import IMAGENET
from strategies.models.catalogue import DEFAULT_BACKBONE
from strategies.models.domain_shift import SHIFT_PX
from strategies.registry import get_strategy

HERE = Path(__file__).resolve().parent
RESULTS, EVIDENCE = HERE / "results.jsonl", HERE / "evidence.jsonl"

Row = dict[str, Any]


class Case(NamedTuple):
    """A drawn dataset, and the network and input size that it was measured with."""

    dataset: str
    n_per_class: int
    seed: int
    input_px: int
    backbone: str = DEFAULT_BACKBONE

    @property
    def draw(self) -> tuple[str, int, int, str]:
        """The case without its input size."""
        return self.dataset, self.n_per_class, self.seed, self.backbone


SUITE_PX = (224, 160, 96)
"""Input sizes of the suite."""
_REMOVED = {"spectral"}
"""Hyperparameters that rows until 2026-12-01 have, and that strategies have no longer."""
T = TypeVar("T")


def case_of(row: Row) -> Case:
    """Return the case that a row belongs to."""
    backbone = row.get("backbone", DEFAULT_BACKBONE)  # older rows were all made with it
    return Case(row["set"], row["n_per_class"], row["seed"], row["input_px"], backbone)


def pack_hits(hits: NDArray[np.bool_]) -> str:
    """Return which test images were classified correctly as hexadecimal bytes, a bit per image."""
    return np.packbits(hits).tobytes().hex()


def hits_of(row: Row) -> NDArray[np.bool_]:
    """Return which test images a fit classified correctly, (n_test,), in the split's order."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), dtype=np.uint8))
    return bits[: row["n_test"]].astype(bool)


def seconds_of(row: Row) -> float:
    """Return the seconds of a row's fit; NaN if they were not recorded (``--untimed``)."""
    return math.nan if row["seconds"] is None else float(row["seconds"])


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
    return {"profile": _rounded(asdict(profile)), "candidates": candidates}


def read_inputs(path: Path = EVIDENCE) -> dict[Case, DecisionInputs]:
    """Return the inputs of the decision of every case; a later row replaces an earlier one.

    Rows until 2026-11-29 hold the similarity at their own input size. That of the same images at
    the size of today's similarity takes its place, where it was measured.
    """
    rows = read_rows(path)
    profiles = {case_of(row): row["profile"] for row in rows}
    found = {}
    for row in rows:
        case, profile = case_of(row), _current(row["profile"])
        if profile is not row["profile"]:
            at_size = case._replace(input_px=SHIFT_PX)
            measured = profiles[at_size if at_size in profiles else case]
            similarity = _similarity(measured["similarity"], measured["n_measured"])
            shift = measured.get("domain_shift")
            profile = {**profile, "similarity": similarity, "domain_shift": shift}
        found[case] = _inputs_of(row, profile)
    return found


def _inputs_of(row: Row, profile: Row) -> DecisionInputs:
    """Return the inputs that a row records; the suite's smaller input sizes are added.

    A fit costs as many forward passes as before, each in proportion to the number of pixels.
    """
    own_px = row["input_px"]
    candidates = []
    for name, about in row["candidates"].items():
        given = {k: v for k, v in about["hyperparameters"].items() if k not in _REMOVED}
        start = get_strategy(name).from_hyperparameters(given)
        for px in (own_px, *(s for s in SUITE_PX if s < own_px)):
            cost = about["image_passes"] * (px / own_px) ** 2
            candidates.append(Candidate(start.with_input_px(px), cost, about["inapplicable"]))
    return DecisionInputs(_build(Profile, profile), tuple(candidates))


def _current(profile: Row) -> Row:
    """Return a recorded profile in today's form.

    In rows until 2026-11-29, the similarity holds the statistics of the backbone.
    """
    similarity = profile["similarity"]
    if "evidence" not in similarity:
        return profile
    return {
        **profile,
        "pretrained_on": IMAGENET,
        "backbone_statistics": {**similarity, "head": similarity["evidence"]},
    }


def _similarity(record: Row, n_measured: int) -> Row:
    """Return a recorded similarity with its number of images, which older rows do not state."""
    return {"n_images": min(n_measured, 1000), **record}


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
