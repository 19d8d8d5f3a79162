"""Which way to learn: measures a dataset, advises a strategy, tunes it.

``from advisor import advise, auto, resume`` is the Python interface; importing this costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.advise import advise as advise
    from advisor.tune.driver import auto as auto
    from advisor.tune.resume import resume as resume

_LAZY = {
    "advise": "advisor.advise",
    "auto": "advisor.tune.driver",
    "resume": "advisor.tune.resume",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
