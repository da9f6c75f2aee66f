"""Recalls by scene class and by caption length (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError
from cmpagl_core.evaluation.recall import Recalls
from cmpagl_core.evaluation.result import Hits, Queries

By = Literal["scene", "length"]

_LENGTHS = ((1, 5), (6, 8), (9, 11), (12, 15), (16, None))


@dataclass(frozen=True)
class GroupRow:
    """Recalls of a subset of the queries, in percent, against the whole gallery; None without queries."""

    stage: str
    group: str
    images: int
    captions: int
    i2t: Recalls | None
    t2i: Recalls | None
    mr: float | None


def by_scene(queries: Queries, stage: str, scenes: Sequence[str]) -> tuple[GroupRow, ...]:
    """One row per scene class. scenes [N], "" if unknown. Raises DataError if no class is known."""
    names = sorted(set(scenes) - {""})
    if not names:
        raise DataError("no image of this split has a scene class", hint="prepare it with its class list")
    of_image = np.array([names.index(scene) if scene else -1 for scene in scenes])
    of_caption = of_image[queries.caption_image]
    return tuple(_row(queries, stage, name, of_image == place, of_caption == place) for place, name in enumerate(names))


def by_length(queries: Queries, stage: str, captions: Sequence[str]) -> tuple[GroupRow, ...]:
    """Text to image by number of words in the query; image to text is None, since an image has several captions."""
    words = np.array([len(text.split()) for text in captions])
    rows = []
    for least, most in _LENGTHS:
        inside = (words >= least) & (words <= (most if most is not None else words.max(initial=0)))
        if inside.any():
            name = f"{least}-{most} words" if most is not None else f"{least} words or more"
            rows.append(_row(queries, stage, name, np.zeros(len(queries.image_ids), bool), inside))
    return tuple(rows)


def _row(queries: Queries, stage: str, group: str, images: NDArray[np.bool_], captions: NDArray[np.bool_]) -> GroupRow:
    hits = queries.stages[stage]
    i2t, t2i = _recalls(hits.i2t_hits[images]), _recalls(hits.t2i_hits[captions])
    mr = (i2t.mean + t2i.mean) / 2 if i2t is not None and t2i is not None else None
    return GroupRow(stage, group, int(images.sum()), int(captions.sum()), i2t, t2i, mr)


def _recalls(hits: Hits) -> Recalls | None:
    asked = hits[~np.isnan(hits).any(axis=1)]
    return Recalls(*(float(value) for value in 100.0 * asked.mean(axis=0))) if len(asked) else None
