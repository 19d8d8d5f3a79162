"""The JSON output of tl-advise follows its schema and is reproducible."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from advisor.cli.app import advise_app, auto_app
from advisor.report.from_json import read_advice
from advisor.report.to_json import advice_record
from advisor.types.advice import SCHEMA_VERSION
from tests.advisor.report.made import full_profile, made_advice
from tests.corpus import write_corpus

jsonschema = pytest.importorskip("jsonschema")
runner = CliRunner()


@pytest.fixture(scope="module")
def schema() -> Any:
    text = files("advisor.report").joinpath("schema/advice.schema.json").read_text("utf-8")
    return json.loads(text)


def quick(tmp_path: Path) -> list[str]:
    return ["--cache-dir", str(tmp_path / "cache"), "--input-px", "32"]


def test_the_schema_is_valid_and_has_the_current_version(schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert schema["$id"].endswith(f":{SCHEMA_VERSION}")


def test_json_carries_findings_quarantine_and_split(
    schema: Any, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    make_folder("d/train", 7)
    root = make_folder("d/test", 5, seed=1).parent
    shutil.copy(root / "test/class0/001.png", root / "train/class0/leak.png")
    (root / "train/class1/torn\n.png").write_bytes(b"\x89PNG")
    found = runner.invoke(advise_app, [str(root), "--json", *quick(tmp_path)])
    assert found.exit_code == 0, found.output
    advice = json.loads(found.stdout)
    jsonschema.validate(advice, schema)
    assert advice["split"]["train"] + advice["split"]["val"] == 22
    assert advice["split"]["test"] == 15
    assert advice["quarantine"][0]["path"].endswith("torn\\n.png")
    codes = {finding["code"]: finding for finding in advice["findings"]}
    assert {"TL001", "TL004"} <= codes.keys()
    assert "leak.png" in codes["TL004"]["examples"][0]
    del advice["findings"][0]["severity"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(advice, schema)


@pytest.mark.parametrize("time_s", [None, 120.0])
def test_the_frontier_follows_the_schema_and_holds_no_infinity(
    time_s: float | None, schema: Any
) -> None:
    advice = made_advice(full_profile(["ants", "bees"]), time_s=time_s)
    for given in (advice, replace(advice, frontier=None)):
        record = json.loads(json.dumps(advice_record(given), allow_nan=False))
        jsonschema.validate(record, schema)
        assert record["time_s"] == time_s
        assert read_advice(record) == given
    assert advice.frontier is not None
    last = advice_record(advice)["frontier"]["picks"][-1]
    assert last["time_s"] is None
    assert last["image_passes"] is None


def without_times(value: Any, schema: Any, whole: Any, path: str, found: set[str]) -> Any:
    """Blank the fields that the schema marks as times, and add their paths to `found`."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rsplit("/", 1)[1]] | schema
    for option in schema.get("anyOf", schema.get("oneOf", ())):
        if value is not None and option.get("type") != "null":
            return without_times(value, option, whole, path, found)
    if schema.get("x-time"):
        found.add(path)
        return None
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        return {
            k: without_times(v, fields.get(k, {}), whole, f"{path}.{k}", found)
            for k, v in value.items()
        }
    if isinstance(value, list):
        items = schema.get("items", {})
        return [without_times(v, items, whole, f"{path}[]", found) for v in value]
    return value


CACHE_AND_WORKERS = (("first", "1"), ("first", "2"), ("second", "2"))


def test_cache_and_number_of_workers_change_only_fields_marked_as_times(
    schema: Any, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_folder("d", 11)
    texts = []
    for cache, workers in CACHE_AND_WORKERS:
        asked = [str(data), "--json", "--input-px", "32", "--workers", workers]
        found = runner.invoke(advise_app, [*asked, "--cache-dir", str(tmp_path / cache)])
        assert found.exit_code == 0, found.output
        times: set[str] = set()
        advice = json.loads(found.stdout)
        jsonschema.validate(advice, schema)
        record = without_times(advice, schema, schema, "", times)
        texts.append(json.dumps(record))
    assert {".seconds", ".recommendations[].seconds", ".profile.ms_per_image"} <= times
    assert {".frontier.options[].seconds", ".frontier.picks"} <= times
    assert len(set(texts)) == 1


def test_too_many_unreadable_images_exit_with_code_2(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_folder("d", 5)
    for i in range(3):
        (root / "class0" / f"torn{i}.png").write_bytes(b"torn")
    found = runner.invoke(advise_app, [str(root), *quick(tmp_path)])
    assert found.exit_code == 2
    assert "--max-quarantine" in found.stderr


@pytest.mark.slow
def test_both_commands_handle_the_corpus_of_damaged_files(schema: Any, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_corpus(root)
    allowed = [str(root), "--max-quarantine", "1", *quick(tmp_path)]
    found = runner.invoke(advise_app, [*allowed, "--json"])
    assert found.exit_code == 0, found.output
    advice = json.loads(found.stdout)
    jsonschema.validate(advice, schema)
    assert len(advice["quarantine"]) > 150
    assert runner.invoke(advise_app, allowed).exit_code == 0
    refused = runner.invoke(advise_app, [str(root), *quick(tmp_path)])
    assert refused.exit_code == 2
    out = ["--out", str(tmp_path / "run"), "--time", "1h", "--trials", "1"]
    found = runner.invoke(auto_app, ["run", *allowed, *out, "--strategy", "linear_probe"])
    assert found.exit_code == 0, found.output
    assert "Traceback" not in found.output
