"""Results of checking a published claim on the suite's rows: paired comparisons, table rows."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rows import Case, Row, case_of
from run_suite import NO_BLEND


@dataclass(frozen=True)
class ClaimResult:
    """A published claim, its source, and the number of cases on which it held."""

    claim: str
    source: str
    held: int
    cases: int
    detail: str

    def row(self) -> str:
        """Return the result as a row of a Markdown table."""
        return f"| {self.claim} | {self.source} | {self.held} of {self.cases} | {self.detail} |"


def pairs(
    rows: list[Row], first: Callable[[Row], bool], second: Callable[[Row], bool]
) -> Iterator[tuple[Case, float]]:
    """Yield the accuracy of the first row minus that of the second, for cases with both."""
    cases: dict[Case, dict[int, float]] = defaultdict(dict)
    for row in rows:
        for i, matches in enumerate((first, second)):
            if matches(row):
                cases[case_of(row)][i] = row["accuracy"]
    yield from ((case, found[0] - found[1]) for case, found in cases.items() if len(found) == 2)


def fixed(strategy: str, **given: Any) -> Callable[[Row], bool]:
    """Return a filter for rows of a fine-tune with `blend` 1 and learning rate 1e-3 (or given)."""
    grid = {"lr": 1e-3, **NO_BLEND, **given}
    return lambda r: r["strategy"] == strategy and r["grid"] == grid


def with_error(gaps: list[float]) -> str:
    """Format the mean of differences in points, with its standard error."""
    if len(gaps) < 2:
        return f"{100 * np.mean(gaps or [np.nan]):+.1f}"
    error = float(np.std(gaps, ddof=1)) / np.sqrt(len(gaps))
    return f"{100 * np.mean(gaps):+.1f} ± {100 * error:.1f}"


def is_default(row: Row, strategy: str) -> bool:
    """Return whether a row is of a strategy with default hyperparameters."""
    return row["strategy"] == strategy and not row["grid"]
