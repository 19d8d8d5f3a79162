"""A claim held against the suite's rows: what is compared, and how it is said."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rows import Case, Row, case_of
from run_suite import PLAIN


@dataclass(frozen=True)
class Verdict:
    """A claim, where it comes from, and on how many cases it held."""

    claim: str
    source: str
    held: int
    cases: int
    detail: str

    def row(self) -> str:
        """Return a line of the table."""
        return f"| {self.claim} | {self.source} | {self.held} of {self.cases} | {self.detail} |"


def pairs(
    rows: list[Row], first: Callable[[Row], bool], second: Callable[[Row], bool]
) -> Iterator[tuple[Case, float]]:
    """Yield the accuracy of the first minus that of the second, where a case has both."""
    cases: dict[Case, dict[int, float]] = defaultdict(dict)
    for row in rows:
        for i, chosen in enumerate((first, second)):
            if chosen(row):
                cases[case_of(row)][i] = row["accuracy"]
    yield from ((case, found[0] - found[1]) for case, found in cases.items() if len(found) == 2)


def fixed(strategy: str, **given: Any) -> Callable[[Row], bool]:
    """Tell the rows of a fine-tuning whose steps are taken in full, at 1e-3 unless given."""
    grid = {"lr": 1e-3, **PLAIN, **given}
    return lambda r: r["strategy"] == strategy and r["grid"] == grid


def with_error(gaps: list[float]) -> str:
    """Write the mean of some differences in points, with its standard error."""
    if len(gaps) < 2:
        return f"{100 * np.mean(gaps or [np.nan]):+.1f}"
    error = float(np.std(gaps, ddof=1)) / np.sqrt(len(gaps))
    return f"{100 * np.mean(gaps):+.1f} ± {100 * error:.1f}"


def is_default(row: Row, strategy: str) -> bool:
    """Whether a row is of a strategy that was told nothing."""
    return row["strategy"] == strategy and not row["grid"]
