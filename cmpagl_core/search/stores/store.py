"""Store: the interface of a searchable set of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TopK:
    """The best k rows of each query: scores float64 [Q, k], descending, and rows int64 [Q, k]."""

    scores: NDArray[np.float64]
    rows: NDArray[np.int64]


class Store(Protocol):
    """Unit features of N images, or captions, by their rows."""

    def __len__(self) -> int:
        """N."""

    def top_k(self, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None = None) -> TopK:
        """The k largest products of each query [Q, D] with the features.

        where: [N], the rows that may be found; all if None. k is clamped to their number. Raises UsageError for k < 1,
        MismatchError for another width, DataError for features that are not finite.
        """
