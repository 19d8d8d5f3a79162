"""scikit-learn's own checks of estimators, on the estimator of images.

scikit-learn checks nothing of an estimator that takes no tables (`two_d_array`). So its checks
are called one by one: those that need no table on the estimator itself, those that fit tables on
`OfRows`, which makes an image of every row. The others are about the numbers in a table.
"""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.utils import estimator_checks
from sklearn.utils.validation import validate_data

from advisor import TransferClassifier

NEED_NO_TABLE = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimators_unfitted",
    "check_requires_y_none",
    "check_classifiers_one_label",
    "check_classifiers_regression_target",
    "check_estimators_partial_fit_n_features",
    "check_classifiers_one_label_sample_weights",
)
FIT_ROWS = (
    "check_fit_score_takes_y",
    "check_estimators_overwrite_params",
    "check_dont_overwrite_parameters",
    "check_estimators_fit_returns_self",
    "check_pipeline_consistency",
    "check_estimators_pickle",
    "check_classifier_data_not_an_array",
    "check_classifiers_classes",
    "check_supervised_y_2d",
    "check_non_transformer_estimators_n_iter",
    "check_decision_proba_consistency",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_dict_unchanged",
    "check_fit_idempotent",
    "check_fit_check_is_fitted",
)
NUMBERS = "images of uint8 have no NaN, infinity, complex or negative numbers"
COLUMNS = "images have no columns to count: they may differ in size"
NOT_APPLICABLE = {
    "check_estimators_nan_inf": NUMBERS,
    "check_complex_data": NUMBERS,
    "check_positive_only_tag_during_fit": NUMBERS,
    "check_supervised_y_no_nan": "its message is about infinite numbers; labels have their own",
    "check_dtype_object": "objects are images or paths, and not numbers",
    "check_estimators_dtypes": "floats and integers of 32 or 64 bits are refused as images",
    "check_readonly_memmap_input": "its table is of floats; images are copied to files",
    "check_f_contiguous_array_estimator": "its table is of floats; images are copied to files",
    "check_array_api_input": "images are of NumPy or Pillow",
    "check_estimator_sparse_tag": "there are no sparse images",
    "check_estimator_sparse_array": "there are no sparse images",
    "check_estimator_sparse_matrix": "there are no sparse images",
    "check_n_features_in_after_fitting": COLUMNS,
    "check_n_features_in": COLUMNS,
    "check_estimators_empty_data_messages": COLUMNS,
    "check_fit2d_1feature": COLUMNS,
    "check_fit2d_1sample": "one image has one class, which is refused",
    "check_fit1d": "a sequence of paths has one dimension",
    "check_fit2d_predict1d": "a sequence of paths has one dimension",
    "check_classifiers_train": "it asks for an accuracy on numbers, not on images of them",
}


class OfRows(TransferClassifier):
    """Takes tables: the image of a row has a band for every number."""

    def fit(self, X: Any, y: Any) -> Self:
        return super().fit(images_of(validate_data(self, X)), y)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        estimator_checks.check_is_fitted(self)
        return super().predict_proba(images_of(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = False
        return tags


def images_of(table: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return an image of 15 px for every row; below 16 px only exact copies are duplicates."""
    near_0 = np.remainder(table + 10, 20) - 10  # some checks have numbers around 100
    grey = np.round(127.5 + 127.5 * np.tanh(near_0)).astype(np.uint8)
    bands = np.arange(15) * grey.shape[1] // 15
    return np.repeat(grey[:, bands, None], 15, axis=2)


def small(kind: type[TransferClassifier]) -> TransferClassifier:
    return kind(strategy="linear_probe", input_px=32, device="cpu", time_s=300.0)


def check_named(name: str) -> Callable[[str, Any], None]:
    check: Callable[[str, Any], None] = getattr(estimator_checks, name)
    return check


@pytest.mark.parametrize("name", NEED_NO_TABLE)
def test_the_estimator_passes_the_checks_that_need_no_table(name: str) -> None:
    check_named(name)("TransferClassifier", small(TransferClassifier))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIT_ROWS)
def test_the_estimator_of_rows_passes_the_checks_that_fit_tables(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.getbasetemp() / "estimator-checks"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    check_named(name)("OfRows", small(OfRows))


def test_every_check_of_scikit_learn_is_run_or_has_a_reason_why_not() -> None:
    def function(check: Any) -> str:
        while hasattr(check, "func"):
            check = check.func
        return str(check.__name__)

    of_tables = estimator_checks.estimator_checks_generator(small(OfRows))
    known = {*NEED_NO_TABLE, *FIT_ROWS, *NOT_APPLICABLE}
    assert {function(check) for _, check in of_tables} == known
