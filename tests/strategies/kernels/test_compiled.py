"""When a training step is compiled, and when it goes back to running as before."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.kernels import compiled
from strategies.kernels.compiled import ASSUMED, CompileCost, StepCompiler


class Clock:
    """Stands for the clock: every step takes as long as it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(compiled, "time", clock)
    return clock


def run(
    ctx: RunContext,
    clock: Clock,
    seconds: list[float],
    n_steps: int = 10_000,
    *,
    is_enabled: bool = True,
) -> tuple[list[str], list[str]]:
    """Return which loss was used after every check, and the notes; spans take `seconds` a step."""
    notes: list[str] = []
    noted = replace(ctx, reporter=Reporter(on_note=notes.append))
    compiler = StepCompiler(noted, ["net", 224, 32], is_enabled=is_enabled)
    loss: nn.Module = nn.Linear(1, 1)
    eager, used = loss, []
    loss = compiler.after_check(loss, 0, n_steps)
    for number, step_s in enumerate(seconds, 1):
        clock.now += 8 * step_s
        loss = compiler.after_check(loss, 8 * number, n_steps)
        used.append("eager" if loss is eager else "compiled")
    return used, notes


def test_a_long_run_is_compiled_after_a_timed_span_and_what_it_cost_is_remembered(
    ctx: RunContext, clock: Clock
) -> None:
    used, notes = run(ctx, clock, [0.5, 0.1, 5.1, 0.08, 0.08])
    assert used == ["eager", "compiled", "compiled", "compiled", "compiled"]
    assert notes == [
        "Training steps are compiled: 20% less time per step, after 40 s of compiling."
    ]
    # 0.2 of 300 s is more than 40 s, which is known now; 0.15 of it is less than 60 s.
    assert run(ctx, clock, [0.5, 0.1, 5.1, 0.08], 3000)[0][1:] == ["compiled"] * 3


def test_a_run_that_is_too_short_or_must_end_soon_is_not_compiled(
    ctx: RunContext, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(ctx, clock, [0.5, 0.1, 0.1, 0.1], 3000) == (["eager"] * 4, [])
    monkeypatch.setattr(RunContext, "seconds_left", lambda _: 300.0)
    assert run(ctx, clock, [0.5, 0.1, 0.1, 0.1]) == (["eager"] * 4, [])


def test_a_compiled_step_that_saves_too_little_is_given_up_and_not_tried_again(
    ctx: RunContext, clock: Clock
) -> None:
    used, notes = run(ctx, clock, [0.5, 0.1, 5.1, 0.099, 0.1])
    assert used == ["eager", "compiled", "compiled", "eager", "eager"]
    assert notes == ["Training steps are not compiled: no faster after 40 s of compiling."]
    assert run(ctx, clock, [0.5, 0.1, 5.1, 0.08]) == (["eager"] * 4, [])


def test_nothing_is_compiled_where_it_is_disabled(ctx: RunContext, clock: Clock) -> None:
    assert run(ctx, clock, [0.5, 0.1, 5.1, 0.08], is_enabled=False) == (["eager"] * 4, [])


@pytest.mark.parametrize(
    ("cost", "rest_s", "expected"),
    [
        (ASSUMED, 399.0, False),
        (ASSUMED, 401.0, True),
        (CompileCost(0.0, 0.01), 1e6, False),
        (CompileCost(10.0, 0.5), 21.0, True),
    ],
)
def test_compiling_is_worth_it_if_it_saves_more_than_it_takes(
    cost: CompileCost, rest_s: float, expected: bool
) -> None:
    assert cost.is_worth(rest_s) is expected


def test_the_compiled_loss_is_that_of_torch(ctx: RunContext, clock: Clock) -> None:
    compiler = StepCompiler(ctx, [], is_enabled=True)
    layer = nn.Linear(2, 1)
    found: nn.Module = layer
    for step in (0, 1, 2):
        clock.now += 1.0
        found = compiler.after_check(found, step, 100_000)
    assert isinstance(found, torch._dynamo.OptimizedModule)
    assert found.weight is layer.weight


def test_what_cannot_be_compiled_runs_as_before(
    ctx: RunContext, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler")

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda loss: compile_with(loss, backend=fail))
    compiler = StepCompiler(ctx, [], is_enabled=True)
    layer = nn.Linear(2, 1)
    found: nn.Module = layer
    for step in (0, 1, 2):
        clock.now += 1.0
        found = compiler.after_check(found, step, 100_000)
    given = torch.ones(1, 2)
    with pytest.raises(RuntimeError, match="no compiler"):
        found(given)
    torch._dynamo.reset()
    with compiler.running():
        assert torch.equal(found(given), layer(given))
    torch._dynamo.reset()
