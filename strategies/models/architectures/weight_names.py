"""Translation of the parameter names in packages of weights to timm's."""

from torch import nn

from strategies.core.errors import BackboneError


def efficientnet_key(key: str, net: nn.Module) -> str:
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
    place, expands = _block(net, int(number))
    inside = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2" if expands else "bn1",
        "_project_conv": "conv_pwl" if expands else "conv_pw",
        "_bn2": "bn3" if expands else "bn2",
    }
    return f"{place}.{inside[layer]}.{parameter}"


def mobilenet_key(key: str, net: nn.Module) -> str:
    """Translate a parameter name of MobileNetV2 (``features.3.conv.4.bias``) to timm's.

    The names are those of torchvision's first implementation: the stem is ``features.0``, the
    blocks of the whole network follow, and the last convolution comes after them. The layers of
    a block are numbered, activations included.
    """
    _, number, *layers, parameter = key.split(".")
    last = 1 + sum(len(list(stage.children())) for stage in net.get_submodule("blocks").children())
    outside = {"0": ("conv_stem", "bn1"), str(last): ("conv_head", "bn2")}
    if number in outside:
        return f"{outside[number][int(layers[0])]}.{parameter}"
    place, expands = _block(net, int(number) - 1)
    without_expansion = {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"}
    with_expansion = {"0": "conv_pw", "1": "bn1", "3": "conv_dw", "4": "bn2"}
    with_expansion |= {"6": "conv_pwl", "7": "bn3"}
    inside = with_expansion if expands else without_expansion
    return f"{place}.{inside[layers[-1]]}.{parameter}"


def _block(net: nn.Module, number: int) -> tuple[str, bool]:
    """Return the name of a block that is counted from the input, and whether it expands."""
    for stage, blocks in enumerate(net.get_submodule("blocks").children()):
        size = len(list(blocks.children()))
        if number < size:
            place = f"blocks.{stage}.{number}"
            return place, hasattr(net.get_submodule(place), "conv_pwl")
        number -= size
    raise BackboneError("The weights hold more blocks than the architecture has.")
