"""Images by cosine minus an offset: the exact scan against a sort, and the offsets against the whole matrix's rule."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.ranking.offsets import csls, dual_softmax
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.search.query_bank import OffsetStore, bank_offsets


def unit(rng: np.random.Generator, count: int, dim: int = 8) -> np.ndarray:
    rows = rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), k=st.integers(1, 12))
def test_the_store_finds_what_a_sort_finds(seed: int, count: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    features, queries, offsets = unit(rng, count), unit(rng, 3), rng.normal(size=count).astype(np.float32) / 4
    where = rng.random(count) < 0.7
    where[0] = True
    found = OffsetStore(features, offsets).top_k(queries, k, where)
    scores = queries.astype(np.float64) @ features.T.astype(np.float64) - offsets
    scores[:, ~where] = -np.inf
    best = np.sort(scores, axis=1)[:, ::-1][:, : min(k, int(where.sum()))]
    np.testing.assert_allclose(found.scores, best, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(scores, found.rows, axis=1), best, atol=1e-6)


def test_a_bank_ranks_as_the_matrix_of_its_queries_does() -> None:
    """With the query in its own bank, the order of images is that of CSLS and of dual softmax."""
    rng = np.random.default_rng(3)
    images, texts = unit(rng, 30), unit(rng, 40)
    matrix = ScoreMatrix.from_features(images, texts)
    cosines = images @ texts.T
    for temperature, whole in ((None, csls(matrix)), (20.0, dual_softmax(matrix, 20.0))):
        by_bank = cosines - bank_offsets(images, texts, temperature)[:, None]
        by_matrix = whole.block(slice(0, 30), slice(0, 40))
        np.testing.assert_array_equal(np.argsort(-by_bank, axis=0), np.argsort(-by_matrix, axis=0))
