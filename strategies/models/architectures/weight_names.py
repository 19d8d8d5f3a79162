"""Translation of efficientnet_pytorch parameter names to timm's."""

from torch import nn

from strategies.core.errors import BackboneError


def timm_key(key: str, net: nn.Module) -> str:
    """Translate a parameter name of efficientnet_pytorch (``_blocks.3._bn0.bias``) to timm's.

    efficientnet_pytorch numbers the blocks of the whole network and names the expansion,
    depthwise and projection layers of a block. timm numbers stages, and blocks within a stage.
    The first block has no expansion layer.
    """
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}
    outside |= {"_bn1": "bn2", "_fc": "classifier"}
    module, _, rest = key.partition(".")
    if module != "_blocks":
        return f"{outside[module]}.{rest}"
    number, layer, parameter = rest.split(".")
    stage, block = _stage_and_block(net, int(number))
    expands = hasattr(net.get_submodule(f"blocks.{stage}.{block}"), "conv_pwl")
    inside = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2" if expands else "bn1",
        "_project_conv": "conv_pwl" if expands else "conv_pw",
        "_bn2": "bn3" if expands else "bn2",
    }
    return f"blocks.{stage}.{block}.{inside[layer]}.{parameter}"


def _stage_and_block(net: nn.Module, number: int) -> tuple[int, int]:
    for stage, blocks in enumerate(net.get_submodule("blocks").children()):
        size = len(list(blocks.children()))
        if number < size:
            return stage, number
        number -= size
    raise BackboneError("The weights hold more blocks than the architecture has.")
