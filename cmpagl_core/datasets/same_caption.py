"""When two captions are the same: one rule for protocols, one for everything else.

Published numbers treat captions as identical up to white space (`normalise_whitespace`). Losses, audits and overlaps
also ignore case and punctuation (`caption_key`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


def normalise_whitespace(text: str) -> str:
    """Collapse and strip white space: the rule of protocols and of split hashes."""
    return " ".join(text.split())


def caption_key(text: str) -> str:
    """Equal for captions with the same words, ignoring case, punctuation and white space (section 3).

    The key of a caption without words is its white-space-normalised text.
    """
    return " ".join(_WORD.findall(text.casefold())) or normalise_whitespace(text)


def caption_classes(captions: Sequence[str]) -> NDArray[np.int64]:
    """[M], one number per caption, equal for captions that are identical to a protocol."""
    return numbered(normalise_whitespace(text) for text in captions)


def numbered(keys: Iterable[str]) -> NDArray[np.int64]:
    """One number per key, equal for equal keys, in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
