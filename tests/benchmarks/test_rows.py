"""Rows of the suite: what older ones hold is read in today's form."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.advisor.profiles import inputs_of

Row = dict[str, Any]


def old_row(rows: ModuleType, similarity: float, px: int) -> Row:
    """Return a row as it was written when the similarity held the backbone's statistics."""
    record = rows.inputs_record(inputs_of(similarity=similarity))
    profile = record["profile"]
    statistics = profile.pop("backbone_statistics")
    profile["similarity"].pop("n_images")
    profile["similarity"] |= {"basis": "bn_shift", "evidence": statistics.pop("head")}
    profile["similarity"] = {**statistics, **profile["similarity"]}
    profile["domain_shift"] = 0.2
    return {"set": "a", "n_per_class": 20, "seed": 0, "input_px": px, **record}


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_older_row_keeps_its_similarity_and_its_statistics(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    rows = scripts["rows"]
    file = write(tmp_path / "e.jsonl", [old_row(rows, 0.6, 96)])
    (found,) = rows.read_inputs(file).values()
    assert found.profile.similarity.score.mid == 0.6
    assert found.profile.similarity.n_images == 400
    assert found.profile.domain_shift == 0.2
    assert found.profile.backbone_statistics.shift_at(2) == 0.1
    assert found.profile.pretrained_on == "in1k"


def test_an_older_row_at_another_size_gets_the_similarity_at_the_size_of_today(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    rows = scripts["rows"]
    own, at_224 = old_row(rows, 0.6, 96), old_row(rows, 0.7, 224)
    for known, similarity in (([at_224, own], 0.6), ([at_224], 0.7)):
        file = write(tmp_path / "e.jsonl", known)
        found = rows.read_inputs(file)[rows.case_of(at_224)]
        assert found.profile.similarity.score.mid == similarity


def test_a_row_of_today_is_read_as_it_is(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    rows = scripts["rows"]
    inputs = inputs_of(similarity=0.4)
    row = {"set": "a", "n_per_class": 20, "seed": 0, "input_px": 224, "backbone": "other"}
    file = write(tmp_path / "e.jsonl", [row | rows.inputs_record(inputs)])
    found = rows.read_inputs(file)[rows.case_of(row)]
    assert rows.inputs_record(found) == rows.inputs_record(inputs)
