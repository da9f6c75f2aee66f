"""Which of the nearest images are shown: allowed by filters, near enough to the query, no copies of better ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.search.stores.store import Store

if TYPE_CHECKING:
    from cmpagl_core.search.index import GalleryIndex

NEAR_DUPLICATE = 0.98  # cosine of two images above which one hides the other
_CANDIDATES = 4  # times k, at first


@dataclass(frozen=True, eq=False)
class Narrowed:
    """where: [N], the images that may be found; all if None. distinct: near-duplicates and overlapping tiles hidden."""

    where: NDArray[np.bool_] | None = None
    min_score: float | None = None
    distinct: bool = False


ALL = Narrowed()


@dataclass(frozen=True, eq=False)
class Ranked:
    """Images that were found, best first: scores float64 [n], and rows int64 [n] of the gallery."""

    scores: NDArray[np.float64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, int]]) -> Ranked:
        """From pairs of score and row."""
        scores, rows = [score for score, _ in pairs], [row for _, row in pairs]
        return cls(np.array(scores, dtype=np.float64), np.array(rows, dtype=np.int64))

    def at_least(self, score: float | None) -> Ranked:
        """Those of at least this score; all for None."""
        if score is None:
            return self
        count = int((self.scores >= score).sum())
        return Ranked(self.scores[:count], self.rows[:count])


def distinct_top_k(
    store: Store, gallery: GalleryIndex, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None
) -> tuple[list[list[tuple[float, int]]], int]:
    """Scores and rows of the k best of each query that are no near-duplicates of better ones, and how many were hidden.

    An image is hidden by a better one whose feature is nearly its own, or whose tile of the same file overlaps it.
    """
    count = len(gallery) if where is None else int(where.sum())
    found: list[list[tuple[float, int]]] = []
    hidden = 0
    for query in queries:
        wanted = min(count, _CANDIDATES * k)
        while True:
            best = store.top_k(query[None], max(wanted, 1), where)
            kept, skipped = _kept(gallery, best.scores[0], best.rows[0], k)
            if len(kept) == k or wanted >= count:
                break
            wanted = min(count, 4 * wanted)
        found.append(kept)
        hidden += skipped
    return found, hidden


def _kept(
    gallery: GalleryIndex, scores: NDArray[np.float64], rows: NDArray[np.int64], k: int
) -> tuple[list[tuple[float, int]], int]:
    """Greedily, the best first; and how many were hidden before k were found."""
    kept: list[tuple[float, int]] = []
    hidden = 0
    for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
        if len(kept) == k:
            break
        others = [other for _, other in kept]
        if others and (_is_near(gallery, row, others) or any(_overlap(gallery, row, other) for other in others)):
            hidden += 1
        else:
            kept.append((score, row))
    return kept, hidden


def _is_near(gallery: GalleryIndex, row: int, others: list[int]) -> bool:
    features = gallery.image_features
    return bool((features[others] @ features[row]).max() > NEAR_DUPLICATE)


def _overlap(gallery: GalleryIndex, row: int, other: int) -> bool:
    """Whether two tiles of one file have a pixel in common."""
    if gallery.windows is None or gallery.paths[row] != gallery.paths[other]:
        return False
    (left, top, width, height), (left2, top2, width2, height2) = gallery.windows[row], gallery.windows[other]
    return bool(left < left2 + width2 and left2 < left + width and top < top2 + height2 and top2 < top + height)
