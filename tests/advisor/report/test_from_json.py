"""What a run folder holds can be read back as what it was."""

import json
from pathlib import Path

import pytest

from advisor.report.from_json import read_advice
from advisor.report.to_json import advice_record
from advisor.types.advice import Advice
from strategies.core.errors import StorageError


def test_advice_is_what_it_was(measured: tuple[Advice, Path]) -> None:
    advice = measured[0]
    record = json.loads(json.dumps(advice_record(advice), default=str))
    assert read_advice(record) == advice


def test_what_is_no_advice_is_refused() -> None:
    with pytest.raises(StorageError, match="not advice"):
        read_advice({"data": "here", "split": {"description": "", "test": None}})
