"""Every benchmark script has a smoke test."""

from tests.benchmarks import test_fits, test_processes, test_tables
from tests.conftest import BENCHMARKS


def test_every_script_has_a_smoke_test() -> None:
    tested = [*test_fits.SMOKE, *test_processes.SMOKE, *test_tables.SMOKE]
    assert sorted(tested) == sorted(p.stem for p in BENCHMARKS.glob("*.py"))
