"""When two captions are the same one: the two rules, one for protocols and one for everything else.

Published numbers count captions as identical up to white space (`normalise_whitespace`). Losses, audits and overlaps
ask whether two captions say the same (`caption_key`): case and punctuation are off as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


def normalise_whitespace(text: str) -> str:
    """One space between words, none around: the rule of protocols and of the hashes of splits."""
    return " ".join(text.split())


def caption_key(text: str) -> str:
    """Equal for captions with the same words: case, punctuation and white space are off (section 3).

    A caption without any word is its own white-space-normalised text.
    """
    return " ".join(_WORD.findall(text.casefold())) or normalise_whitespace(text)


def caption_classes(captions: Sequence[str]) -> NDArray[np.int64]:
    """[M], one number per caption, equal for captions that a protocol calls identical."""
    return numbered(normalise_whitespace(text) for text in captions)


def numbered(keys: Iterable[str]) -> NDArray[np.int64]:
    """One number per key, equal for equal keys, in the order of their first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
