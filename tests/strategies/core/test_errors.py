import inspect

import pytest

from strategies.core import errors
from strategies.core.errors import TransferError, unknown_name
from strategies.data import decoding


@pytest.mark.parametrize(
    "error",
    [
        member
        for module in (errors, decoding)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Exception) and member.__module__ == module.__name__
    ],
)
def test_every_error_is_a_transfer_error(error: type[Exception]) -> None:
    assert issubclass(error, TransferError)


def test_a_misspelt_name_is_answered_with_the_closest_known_name() -> None:
    message = unknown_name("strategy", "liner_probe", ["layer_svm", "linear_probe"])

    assert "'liner_probe'" in message
    assert "Did you mean 'linear_probe'?" in message


def test_a_name_unlike_all_known_names_gets_no_suggestion() -> None:
    assert "Did you mean" not in unknown_name("strategy", "xyz", ["linear_probe"])


def test_a_short_list_of_names_is_shown_completely_and_sorted() -> None:
    assert "Known: a1, b2, c3." in unknown_name("thing", "q", iter(["c3", "a1", "b2"]))


def test_a_long_list_of_names_is_not_shown() -> None:
    assert "Known" not in unknown_name("thing", "q", [f"name{i}" for i in range(500)])
