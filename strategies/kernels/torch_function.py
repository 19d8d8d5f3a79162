"""Base class of contexts that intercept the torch functions a network calls."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class TorchFunctionInterceptor(TorchFunctionMode):
    """Context in which every call of a torch function goes through `call`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.call(func, args, kwargs or {})

    def call(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call `func`. Subclasses replace some calls by faster ones."""
        return func(*args, **kwargs)
