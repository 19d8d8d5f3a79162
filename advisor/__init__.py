"""Transfer-learning advisor and AutoML for image classification.

The Python interface is ``from advisor import advise, auto, resume, TransferClassifier``. Importing
this package is cheap: each name is imported at its first use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.advise import advise as advise
    from advisor.deploy.estimator import TransferClassifier as TransferClassifier
    from advisor.tune.driver import auto as auto
    from advisor.tune.resume import resume as resume

_LAZY = {
    "TransferClassifier": "advisor.deploy.estimator",
    "advise": "advisor.advise",
    "auto": "advisor.tune.driver",
    "resume": "advisor.tune.resume",
}


class _Package(ModuleType):
    """The package: its attribute `advise` is the function, never the module of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python sets a package's attribute to each submodule that is imported.
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
