"""A stand-in for Apple's MPS on any machine: a device whose tensors cannot be float64."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

MPS = torch.device("mps")


class FakeMps(TorchFunctionMode):
    """Context in which tensors can be moved to "mps": they stay on the CPU, with a mark.

    What is computed from a marked tensor is marked too. A marked tensor of float64 is a TypeError,
    as on MPS.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, and mark its results."""
        kwargs = kwargs or {}
        if not any(map(_concerns_mps, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        given = (args, kwargs)
        values = pytree.tree_leaves(given)
        tensors = [v for v in values if isinstance(v, Tensor)]
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return MPS if _is_marked(tensors[0]) else func(*args)
        if func in (torch.device, torch._C._nn._parse_to, Tensor.__deepcopy__):
            return func(*args, **kwargs)
        devices = [torch.device(v) for v in values if _is_device(v)]
        args, kwargs = pytree.tree_map(lambda v: "cpu" if _is_device(v) else v, given)
        result = func(*args, **kwargs)
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            _mark(tensors[0], _is_marked(tensors[1]))
            return result
        if func in (Tensor.cpu, Tensor.numpy):
            is_there = False
            result = result.clone() if func is Tensor.cpu else result
        else:
            is_there = devices[0] == MPS if devices else any(map(_is_marked, tensors))
            if func is Tensor.to and len(tensors) == 2 and not devices:
                is_there = _is_marked(tensors[1])
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                _mark(tensor, is_there)
        return result


def _concerns_mps(value: Any) -> bool:
    """Return whether a value is a device or a marked tensor, or a sequence that begins so."""
    if isinstance(value, list | tuple):
        return bool(value) and _concerns_mps(value[0])
    return _is_device(value) or _is_marked(value)


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "mps"))


def _is_marked(value: Any) -> bool:
    return isinstance(value, Tensor) and getattr(value, "is_on_fake_mps", False)


def _mark(tensor: Tensor, is_there: bool) -> None:
    with torch._C.DisableTorchFunction():
        if is_there and tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        tensor.is_on_fake_mps = is_there  # type: ignore[attr-defined]
