"""Prompt templates: a text is encoded in each of several wordings and the features are averaged (as CLIP does)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cmpagl_core.encoders.encoder import Features
from cmpagl_core.errors import UsageError

PLACE = "{}"


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates as they are. Raises UsageError for one without exactly one {}."""
    for template in templates:
        if template.count(PLACE) != 1:
            raise UsageError(
                f"template {template!r} does not have exactly one {PLACE} for the text",
                hint='write for instance "a satellite image of {}."',
            )
    return tuple(templates)


def encode_prompted(
    encode: Callable[[Sequence[str]], Features], texts: Sequence[str], templates: Sequence[str]
) -> Features:
    """Unit features [M, D] of texts, averaged over the templates; the texts as they are where there are none."""
    if not templates or not texts:
        return encode(texts)
    total = sum(encode([template.replace(PLACE, text) for text in texts]).astype(np.float64) for template in templates)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(total / np.maximum(lengths, 1e-12), dtype=np.float32)
