"""A stand-in for torch's compiler: it traces as torch does, and runs what was traced as it is."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, fx, nn

from strategies.kernels import compiled
from strategies.kernels.compiled import CompileCost
from strategies.training import loop


@dataclass
class Tracer:
    """Counts what is compiled, and the batches that run compiled.

    Attributes
    ----------
    graphs
        Graphs that were traced. A network that cannot be traced as a whole has several.
    sizes
        Number of images of every batch that ran compiled.
    """

    graphs: list[fx.GraphModule] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def backend(self, graph: fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        """Return a function that runs the graph."""
        self.graphs.append(graph)
        names = [node.name for node in graph.graph.find_nodes(op="placeholder")]

        def run(*inputs: Tensor) -> object:
            (images,) = (x for x, name in zip(inputs, names, strict=True) if "images" in name)
            self.sizes.append(len(images))
            return graph.forward(*inputs)

        return run


def compile_soon(patch: pytest.MonkeyPatch) -> list[str]:
    """Compile everything after two checks, on every device; return how often torch was reset.

    A feature pass is checked after every batch, and what saves nothing is used all the same.
    """
    resets: list[str] = []
    reset = torch.compiler.reset

    def count() -> None:
        resets.append("reset")
        reset()

    patch.setattr(torch.compiler, "reset", count)
    for module in (compiled, loop):
        patch.setattr(module, "can_compile", lambda ctx: True)
    patch.setattr(compiled, "CHECK_BATCHES", 1)
    patch.setattr(compiled, "MAX_WAITING", 1.0)
    patch.setattr(compiled, "MIN_SAVING", -1e6)
    patch.setattr(compiled, "ASSUMED", CompileCost(-1.0, 0.0))
    return resets


def trace_only(patch: pytest.MonkeyPatch) -> Tracer:
    """Let torch trace what is compiled, and compile no code."""
    tracer, compile_with = Tracer(), torch.compile

    def trace(network: nn.Module, **options: object) -> object:
        return compile_with(network, backend=tracer.backend, dynamic=False)

    patch.setattr(torch, "compile", trace)
    return tracer
