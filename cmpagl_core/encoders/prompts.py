"""Prompt templates: a text is encoded in each of several wordings and the features are averaged (as CLIP does)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cmpagl_core.encoders.published_models import own_template
from cmpagl_core.errors import DataError, UsageError

if TYPE_CHECKING:  # a text query does without
    from cmpagl_core.encoders.encoder import Features

PLACE = "{}"
OWN = "own"


def chosen_templates(asked: Sequence[str] | None, model: str | None, before: str = "") -> tuple[str, ...]:
    """Those that are asked for, `own` being the published model's own; None: as they were `written` before.

    Raises UsageError for a wrong one, or for `own` where the model's is not known.
    """
    if asked is None:
        return read_templates(before)
    if list(asked) == [OWN]:
        template = own_template(model or "")
        if not template:
            raise UsageError(f"no template of {model or 'a run'} is known", hint="write it out: --template TEXT")
        return (template,)
    return check_templates(asked)


def written_templates(templates: Sequence[str]) -> str:
    """As an index or a feature set keeps them; empty for none."""
    return json.dumps(list(templates), ensure_ascii=False) if templates else ""


def read_templates(text: str) -> tuple[str, ...]:
    """What `written_templates` wrote. Raises DataError for anything else."""
    if not text:
        return ()
    try:
        found = json.loads(text)
        if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
            return check_templates(found)
    except (ValueError, RecursionError, UsageError):
        pass
    raise DataError(
        f"{text[:100]!r} is no list of templates", hint="the index or feature set was changed; make it again"
    )


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, checked. Raises UsageError for one without exactly one {}."""
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
    """Unit features [M, D] of texts, averaged over the templates; without templates, of the texts themselves."""
    if not templates or not texts:
        return encode(texts)
    total = sum(encode([template.replace(PLACE, text) for text in texts]).astype(np.float64) for template in templates)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(total / np.maximum(lengths, 1e-12), dtype=np.float32)
