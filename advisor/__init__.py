"""Which way to learn: measures a task, advises a strategy, tunes it.

``from advisor import advise, auto`` is the Python interface; importing this costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.pipeline import advise as advise
    from advisor.pipeline import auto as auto

_LAZY = ("advise", "auto")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module("advisor.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
