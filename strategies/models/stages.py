"""Stages of a network: the first depth that needs each of its modules."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from strategies.core.allocator import PartsThatFit
from strategies.models.backbone import Backbone


@torch.no_grad()
def stages(net: nn.Module, backbone: Backbone) -> dict[str, int]:
    """Map every module name to its stage: the first depth, counted from 1, that needs it.

    The order is measured in a forward pass: a module belongs to the first cut point that has not
    been reached when the module is called. Parameters that a block owns itself (class tokens,
    layer scales) get the stage of their block. So do submodules whose parameters the block uses
    without calling them (BEiT's qkv).

    Raises
    ------
    TransferError
        If a single image does not fit into the memory of the network's device.
    """
    n_reached = 0
    stage: dict[str, int] = {}

    def count_cut_point(*_: object) -> None:
        nonlocal n_reached
        n_reached += 1

    def stage_recorder(name: str) -> Callable[..., None]:
        def record(*_: object) -> None:
            stage.setdefault(name, n_reached + 1)

        return record

    device = next(net.parameters()).device
    blank = torch.zeros(1, 3, backbone.input_px, backbone.input_px, device=device)
    with contextlib.ExitStack() as stack:
        for depth in backbone.depths[:-1]:
            cut = net.get_submodule(depth.name)
            stack.enter_context(cut.register_forward_hook(count_cut_point))
        for name, module in net.named_modules():
            stack.enter_context(module.register_forward_pre_hook(stage_recorder(name)))
        stack.callback(net.train, net.training)
        PartsThatFit(device)(net.eval(), blank)
    for name, _ in net.named_modules():
        parent = name.rpartition(".")[0]
        stage.setdefault(name, stage[parent] if parent else backbone.n_depths)
    return {name: min(number, backbone.n_depths) for name, number in stage.items()}
