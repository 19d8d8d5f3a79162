"""Bytes of the tensors that a block of code makes, for as long as they are alive."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that counts the bytes of all tensors that are made in it and are still alive.

    Tensors that share memory count once, and views of tensors from before do not count. What an
    operation allocates and frees inside itself is not seen.

    Attributes
    ----------
    live
        Bytes that are alive now.
    fixed
        Those of them in tensors of the shape of a parameter: gradients of weights, and copies of
        them. They do not depend on the number of images.
    history
        Pairs of `live` and `fixed` after every tensor that was made.

    Parameters
    ----------
    parameters
        Parameters of the network that runs in the context.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.fixed = 0
        self.history: list[tuple[int, int]] = []
        shapes = {tuple(p.shape) for p in parameters}
        self._fixed_shapes = shapes | {shape[::-1] for shape in shapes if len(shape) == 2}
        self._made: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing here is compiled, and skipping imports torch._dynamo (1.5 s)."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {_key(t.untyped_storage()) for t in _tensors((*args, *(kwargs or {}).values()))}
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            if _key(storage) not in given | self._made:
                self._add(storage, is_fixed=tuple(tensor.shape) in self._fixed_shapes)
        return found

    def _add(self, storage: torch.UntypedStorage, *, is_fixed: bool) -> None:
        key, n_bytes = _key(storage), storage.nbytes()
        self._made.add(key)
        self.live += n_bytes
        self.fixed += n_bytes * is_fixed
        self.history.append((self.live, self.fixed))
        weakref.finalize(storage, self._remove, key, n_bytes, is_fixed=is_fixed)

    def _remove(self, key: int, n_bytes: int, *, is_fixed: bool) -> None:
        self._made.discard(key)
        self.live -= n_bytes
        self.fixed -= n_bytes * is_fixed


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)


def _tensors(found: object) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results, also of nested lists."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for item in found:
            yield from _tensors(item)
