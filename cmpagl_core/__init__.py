"""The toolkit without its command line: data sets, model, training, retrieval and evaluation.

Its functions for Python users (`_API`, see docs/python.md) are loaded when they are asked for, so that importing the
package costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_API = (
    "evaluate",
    "evaluate_scores",
    "open_data",
    "open_index",
    "open_run",
    "prepare",
    "rerank",
    "train",
)


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("cmpagl_core.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
