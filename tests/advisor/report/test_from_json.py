"""Advice read back from JSON equals the original."""

import json
from pathlib import Path

import pytest

from advisor.report.from_json import read_advice
from advisor.report.to_json import advice_record
from advisor.types.advice import Advice
from strategies.core.errors import StorageError


def test_advice_survives_the_round_trip_through_json(measured: tuple[Advice, Path]) -> None:
    advice = measured[0]
    record = json.loads(json.dumps(advice_record(advice), default=str))
    assert read_advice(record) == advice


def test_a_record_of_another_release_is_rejected() -> None:
    message = "advice record cannot be read: .* damaged or of another release"
    with pytest.raises(StorageError, match=message):
        read_advice({"data": "here", "split": {"description": "", "test": None}})
