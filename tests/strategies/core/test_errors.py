import inspect

import pytest

from strategies.core import errors
from strategies.core.errors import TransferError, unknown_name
from strategies.data import decoding as images


@pytest.mark.parametrize(
    "error",
    [
        member
        for module in (errors, images)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Exception) and member.__module__ == module.__name__
    ],
)
def test_every_error_descends_from_one_root(error: type[Exception]) -> None:
    assert issubclass(error, TransferError)


def test_a_misspelt_name_gets_the_closest_one() -> None:
    message = unknown_name("strategy", "liner_probe", ["layer_svm", "linear_probe"])

    assert "'liner_probe'" in message
    assert "Did you mean 'linear_probe'?" in message


def test_a_name_like_no_other_gets_no_guess() -> None:
    assert "Did you mean" not in unknown_name("strategy", "xyz", ["linear_probe"])


def test_a_short_list_is_told_whole_and_in_order() -> None:
    assert "Known: a1, b2, c3." in unknown_name("thing", "q", iter(["c3", "a1", "b2"]))


def test_a_long_list_is_not_told() -> None:
    assert "TransferContext" not in unknown_name("thing", "q", [f"name{i}" for i in range(500)])
