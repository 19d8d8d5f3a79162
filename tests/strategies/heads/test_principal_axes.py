"""Principal axes where LAPACK fails in single precision."""

from typing import Any

import numpy as np
import pytest
import torch

from strategies.heads.principal_axes import principal_axes


def test_where_single_precision_fails_the_axes_are_those_of_double_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    weights = torch.ones(40, dtype=torch.float64)
    expected = principal_axes(features, weights, n_classes=2, exact=True)
    eigh, refused = torch.linalg.eigh, list[torch.dtype]()

    def fail_in_single_precision(matrix: torch.Tensor) -> Any:
        if matrix.dtype == torch.float32:
            refused.append(matrix.dtype)
            raise torch.linalg.LinAlgError("failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fail_in_single_precision)
    found = principal_axes(features, weights, n_classes=2, exact=False)
    assert refused
    np.testing.assert_allclose(found.coordinates, expected.coordinates, atol=1e-5)
    assert found.coordinates.dtype == expected.coordinates.dtype
