"""When training steps and feature passes are compiled, and when they run as before again."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.kernels import compiled
from strategies.kernels.compiled import (
    ASSUMED,
    FEATURE_PASS,
    MAX_WAITING,
    PASS_OPTIONS,
    TRAINING,
    CompileCost,
    FeaturePass,
    OneSize,
    TimedCompiler,
    Work,
    can_compile,
)
from tests.compiling import trace_only


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
    work: Work = TRAINING,
    waiting: float = 0.0,
) -> tuple[list[str], list[str]]:
    """Return which loss was used after every check, and the notes; spans take `seconds` a step.

    `waiting` is the share of the time in which images are waited for.
    """
    notes: list[str] = []
    noted = replace(ctx, reporter=Reporter(on_note=notes.append))
    compiler = TimedCompiler(work, noted, ["net", 224, 32], is_enabled=is_enabled)
    loss: nn.Module = nn.Linear(1, 1)
    eager, used = loss, []
    loss = compiler.after_check(loss, 0, n_steps)
    for number, step_s in enumerate(seconds, 1):
        clock.now += 8 * step_s
        waited_s = waiting * (clock.now - 100.0)
        loss = compiler.after_check(loss, 8 * number, n_steps, waited_s)
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


def test_the_cost_of_a_feature_pass_is_not_that_of_a_training_step(
    ctx: RunContext, clock: Clock
) -> None:
    run(ctx, clock, [0.5, 0.1, 5.1, 0.099])  # training steps are no faster
    used, notes = run(ctx, clock, [0.5, 0.1, 5.1, 0.08], work=FEATURE_PASS)
    assert used == ["eager", "compiled", "compiled", "compiled"]
    assert notes == [
        "Feature passes are compiled: 20% less time per image, after 40 s of compiling."
    ]


@pytest.mark.parametrize(("share", "expected"), [(0.9, "compiled"), (1.1, "eager")])
def test_a_pass_that_waits_for_decoding_is_not_compiled(
    ctx: RunContext, clock: Clock, share: float, expected: str
) -> None:
    spans = [0.5, 0.1, 5.1, 0.08]
    used, _ = run(ctx, clock, spans, work=FEATURE_PASS, waiting=share * MAX_WAITING)
    assert used[-1] == expected
    # Nothing was measured where nothing was compiled: another pass is not affected.
    assert run(ctx, clock, spans, work=FEATURE_PASS)[0][-1] == "compiled"


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
    compiler = TimedCompiler(TRAINING, ctx, [], is_enabled=True)
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
    compiler = TimedCompiler(TRAINING, ctx, [], is_enabled=True)
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


@pytest.mark.parametrize(
    ("device", "is_deterministic", "expected"),
    [("cpu", False, False), ("mps", False, False), ("cuda", False, True), ("cuda", True, False)],
)
def test_only_passes_on_cuda_that_need_not_be_equal_are_compiled(
    ctx: RunContext, device: str, is_deterministic: bool, expected: bool
) -> None:
    there = replace(ctx, device=torch.device(device), is_deterministic=is_deterministic)
    assert can_compile(there) is expected


class Doubled(nn.Module):
    """Doubles, and counts the batches that it runs itself."""

    n_own = 0

    def forward(self, images: Tensor) -> Tensor:
        self.n_own += 1
        return 2 * images


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Let compiled networks triple, and record the options of torch's compiler."""
    given: list[dict[str, object]] = []

    def triple(network: nn.Module, **options: object) -> Callable[[Tensor], Tensor]:
        given.append(options)
        return lambda images: 3 * images

    monkeypatch.setattr(torch, "compile", triple)
    return given


def test_batches_of_other_sizes_than_the_first_run_as_before(
    options: list[dict[str, object]],
) -> None:
    network = Doubled()
    one_size = OneSize(network)
    found = [float(one_size(torch.ones(n, 1))[0]) for n in (4, 4, 2, 1, 4, 5)]
    assert found == [3, 3, 2, 2, 3, 2]
    assert network.n_own == 3
    (given,) = options
    assert given == {"dynamic": False, "options": PASS_OPTIONS}


def test_torch_knows_the_options_of_feature_passes() -> None:
    assert PASS_OPTIONS.keys() <= set(torch._inductor.list_options())
    cuda_graphs = torch._inductor.list_mode_options("reduce-overhead")
    assert cuda_graphs.items() <= PASS_OPTIONS.items()


def test_a_feature_pass_is_timed_every_eight_batches(
    ctx: RunContext,
    clock: Clock,
    options: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "can_compile", lambda ctx: True)
    values = []
    with FeaturePass(Doubled(), [], 1_000_000, ctx) as feature_pass:
        for number in range(1, 25):
            values.append(float(feature_pass(torch.ones(4, 1))[0]))
            clock.now += 1.0
            feature_pass.after_batch(4 * number, 0.0)
    assert values == [2.0] * 16 + [3.0] * 8


@pytest.mark.parametrize("can_compile", [False, True])
def test_a_pass_is_in_inference_mode_unless_it_may_use_cuda_graphs(
    can_compile: bool, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "can_compile", lambda ctx: can_compile)
    with FeaturePass(Doubled(), [], 32, ctx):
        assert torch.is_inference_mode_enabled() != can_compile
        assert not torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_more_networks_than_torch_compiles_a_function_for_are_compiled(
    ctx: RunContext, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer, limit = trace_only(monkeypatch), 2
    n_networks = limit + 2
    with torch._dynamo.config.patch(recompile_limit=limit):
        for width in range(1, n_networks + 1):
            compiler = TimedCompiler(TRAINING, ctx, [width], is_enabled=True)
            network: nn.Module = Widened(width)
            for step in (0, 1, 2):
                clock.now += 1.0
                network = compiler.after_check(network, step, 100_000)
            network(torch.ones(2, width))
    assert len(tracer.graphs) == n_networks
    torch.compiler.reset()


class Widened(nn.Module):
    """A layer of any width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.layer(images)
        return found
