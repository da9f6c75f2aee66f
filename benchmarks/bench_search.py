"""Exact top 10 of 1,000,000 images x 256: what an open Searcher scans against faiss IndexFlatIP: 64 queries, one, many.

Many are what `retrieve --queries` asks at once, timed on 2,048 lines; the time of both grows with their number.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from _measure import in_turns_s, median_s, report
from numpy.typing import NDArray

from cmpagl_core.device import keep_freed_memory
from cmpagl_core.progress import Silent
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.int8 import Int8Store

IMAGES, DIM, K, THREADS = 1_000_000, 256, 10, 2
MANY, AT_ONCE = 2_048, 512  # as `Searcher.search` divides them


def unit_rows(rows: int, seed: int) -> NDArray[np.float32]:
    """Random directions."""
    values = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed))
    return np.asarray(torch.nn.functional.normalize(values, dim=1).numpy())


def main() -> int:
    """Print one line for each number of queries, and how the time grows with the gallery."""
    try:
        import faiss
    except ImportError:
        print("bench_search needs its peer: pip install -e '.[bench]' (faiss-cpu)", file=sys.stderr)
        return 0
    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as every command of ours begins on a CPU
    faiss.omp_set_num_threads(THREADS)
    features, queries = unit_rows(IMAGES, 0), unit_rows(64, 1)
    index = faiss.IndexFlatIP(DIM)
    index.add(features)
    exact = ExactStore(features)
    scanner = Int8Store(exact, Silent())
    met = []
    for count, bar in ((64, 4.0), (1, 2.0)):
        asked = queries[:count]
        found = scanner.top_k(asked, K)
        _, expected = index.search(asked, K)
        assert (found.rows == expected).all(), "not the same top 10 as faiss"
        assert (found.rows == exact.top_k(asked, K).rows).all(), "not the same top 10 as the float32 search"
        ours, peer = in_turns_s(
            lambda asked=asked: scanner.top_k(asked, K), lambda asked=asked: index.search(asked, K), repeats=7
        )
        title = f"exact search, 1,000,000 x 256, {count} queries"
        met.append(report(title, ours, "s", bar, "faiss IndexFlatIP", peer))
    many = unit_rows(MANY, 2)
    ours, peer = in_turns_s(
        lambda: [scanner.top_k(many[at : at + AT_ONCE], K) for at in range(0, MANY, AT_ONCE)],
        lambda: index.search(many, K),
        repeats=3,
    )
    met.append(report(f"exact search, 1,000,000 x 256, {MANY:,} queries", ours, "s", 4.0, "faiss IndexFlatIP", peer))
    eighth = Int8Store(ExactStore(np.ascontiguousarray(features[: IMAGES // 8])), Silent())
    small, large = median_s(lambda: eighth.top_k(queries, K)), median_s(lambda: scanner.top_k(queries, K))
    title = "exact search, 8 x the images for at most 8 x the time"
    met.append(report(title, large, "s", 1.0, "8 x the time of 125,000", 8 * small))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
