import contextlib
import os
import time
from pathlib import Path

import pytest
import torch

from strategies.core import context as context_module
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext, make_context
from strategies.core.errors import OutOfTime


def _context(tmp_path: Path, **settings: object) -> RunContext:
    return RunContext(cache=ArrayCache(tmp_path), **settings)


def test_without_a_deadline_the_time_left_is_infinite(ctx: RunContext) -> None:
    assert ctx.seconds_left() == float("inf")
    ctx.check_time()


def test_seconds_left_counts_down_to_the_deadline(tmp_path: Path) -> None:
    ctx = _context(tmp_path, deadline_s=time.monotonic() + 100)

    assert 95 < ctx.seconds_left() <= 100
    ctx.check_time()


def test_check_time_raises_after_the_deadline(tmp_path: Path) -> None:
    ctx = _context(tmp_path, deadline_s=time.monotonic() - 1)

    assert ctx.seconds_left() < 0
    with pytest.raises(OutOfTime):
        ctx.check_time()


def test_the_same_seed_draws_the_same_numbers(tmp_path: Path) -> None:
    def draw(seed: int) -> torch.Tensor:
        with _context(tmp_path, seed=seed).seeded():
            return torch.rand(5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_seeding_leaves_the_global_generator_unchanged(ctx: RunContext) -> None:
    before = torch.random.get_rng_state()

    with ctx.seeded():
        torch.rand(100)
    with contextlib.suppress(KeyError), ctx.seeded():
        torch.rand(100)
        raise KeyError

    assert torch.equal(torch.random.get_rng_state(), before)


def test_full_precision_disables_autocast(ctx: RunContext) -> None:
    with ctx.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_lower_precision_enables_autocast(tmp_path: Path) -> None:
    with _context(tmp_path, precision=torch.bfloat16).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_default_callbacks_accept_reports(ctx: RunContext) -> None:
    ctx.reporter.on_epoch(1, 0.5)
    ctx.reporter.on_progress("features", 1, 2)


def test_the_cache_folder_can_be_given(tmp_path: Path) -> None:
    ctx = make_context(device="cpu", cache_dir=tmp_path / "here", seed=7)

    assert ctx.cache.path.parent == tmp_path / "here"
    assert ctx.seed == 7
    assert ctx.n_workers >= 2


def test_the_cache_is_in_the_users_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_module, "default_cache_dir", lambda: tmp_path / "user")

    assert make_context(device="cpu").cache.path.parent == tmp_path / "user"


@pytest.mark.parametrize(("capable", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_cpu_uses_bfloat16_only_if_its_hardware_supports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capable: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable})

    assert make_context(device="cpu", cache_dir=tmp_path).precision == expected


def test_heads_are_fitted_on_the_device_unless_it_has_no_float64(tmp_path: Path) -> None:
    used = [
        _context(tmp_path, device=torch.device(name)).head_device.type
        for name in ("cpu", "cuda", "mps")
    ]
    assert used == ["cpu", "cuda", "cpu"]


def test_deterministic_results_are_asked_of_cublas_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(context_module, "make_device", torch.device)
    monkeypatch.setattr(context_module, "choose_precision", lambda _: torch.float32)

    made = make_context(device="cpu", cache_dir=tmp_path, is_deterministic=True)
    assert (made.is_deterministic, "CUBLAS_WORKSPACE_CONFIG" in os.environ) == (True, False)
    make_context(device="cuda", cache_dir=tmp_path)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    make_context(device="cuda", cache_dir=tmp_path, is_deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
