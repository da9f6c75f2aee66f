"""Recall, SMR and GaLR re-ranking of an RSICD test split, both directions, against loops as public codes have them.

The loops are given all columns sorted and summed beforehand and timed on some queries, their time scaled to all; the
scores of those queries are compared in the same run.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from _measure import median_s, report
from numpy.typing import NDArray

from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.evaluation.tune import choose_smr
from cmpagl_core.ranking.galr import GALR_BACKWARD_WEIGHT, GALR_K, GALR_SCORE_WEIGHT
from cmpagl_core.ranking.rerank import Directions, Gammas, RerankParams, rerank
from cmpagl_core.ranking.scores import ScoreMatrix

IMAGES, CAPTIONS, WIDTH = 1093, 5, 256
GAMMA1, GAMMA2 = 1.0, 4.0
LOOPED_QUERIES = 12
TUNED = RerankParams(Gammas("multiply", GAMMA1, GAMMA2))

Matrix = NDArray[np.float64]


def random_features() -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    """Texts that lean towards their image: recalls far from 0 and from 100."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(IMAGES), CAPTIONS)
    images = rng.standard_normal((IMAGES, WIDTH))
    return images, 0.15 * images[owner] + rng.standard_normal((len(owner), WIDTH)), owner


def ours(images: Matrix, texts: Matrix, matches: Matches) -> list[float]:
    """mR of the plain scores, of SMR and of GaLR, all from features."""
    plain = Directions(ScoreMatrix.from_features(images, texts).in_memory())
    stages = [plain, rerank(plain, "smr", TUNED), rerank(plain, "galr", TUNED)]
    return [recall(stage.i2t, matches, stage.t2i).mr for stage in stages]


@dataclass(frozen=True)
class Columns:
    """What the loops are given beforehand of every column."""

    order: NDArray[np.int64]
    low: Matrix
    high: Matrix
    total: Matrix

    @classmethod
    def of(cls, scores: Matrix) -> Columns:
        return cls(np.argsort(-scores, axis=0), scores.min(axis=0), scores.max(axis=0), scores.sum(axis=0))


def looped_smr(scores: Matrix, columns: Columns, query: int) -> Matrix:
    """One query's row, candidate by candidate."""
    low, high = columns.low.min(), columns.high.max()
    row = np.zeros(scores.shape[1])
    for item in range(scores.shape[1]):
        backward = np.where(columns.order[:, item] == query)[0][0]
        share = (scores[query, item] - columns.low[item]) / (columns.high[item] - columns.low[item])
        weight = 1 + GAMMA1 * math.exp(-0.05 * backward) + GAMMA2 * share
        row[item] = (scores[query, item] - low) / (high - low) * weight
    return row


def looped_galr(scores: Matrix, columns: Columns, query: int) -> Matrix:
    """One query's row: its 30 candidates, the backward rank of each."""
    row = np.zeros(scores.shape[1])
    candidates = np.argsort(-scores[query])[:GALR_K]
    backward = [np.where(columns.order[:, item] == query)[0][0] for item in candidates]
    order = np.argsort(backward, kind="stable")
    for place, item in enumerate(candidates):
        position = np.where(order == place)[0][0]
        share = scores[query, item] / columns.total[item]
        row[item] = (
            GALR_SCORE_WEIGHT * share + math.exp(-0.05 * place) + GALR_BACKWARD_WEIGHT * math.exp(-0.05 * position)
        )
    return row


def looped_recall(row: Matrix, relevant: NDArray[np.int64]) -> list[bool]:
    """Whether a query hits at 1, 5 and 10."""
    order = np.argsort(-row)
    best = min(int(np.where(order == item)[0][0]) for item in relevant)
    return [best < k for k in (1, 5, 10)]


def loop_s(scores: Matrix, owner: NDArray[np.int64], to_texts: bool) -> float:
    """Seconds that the loops would need for all queries of one direction."""
    started_at = time.perf_counter()
    columns = Columns.of(scores)
    sorting_s = time.perf_counter() - started_at
    queries = np.linspace(0, len(scores) - 1, LOOPED_QUERIES).astype(int)
    started_at = time.perf_counter()
    for query in queries:
        relevant = np.where(owner == query)[0] if to_texts else owner[[query]]
        for row in (
            scores[query],
            looped_smr(scores, columns, query),
            looped_galr(scores, columns, query),
        ):
            looped_recall(row, relevant)
    return sorting_s + (time.perf_counter() - started_at) * len(scores) / LOOPED_QUERIES


def same_scores(images: Matrix, texts: Matrix) -> bool:
    """Whether the loops' rows are ours (backward ties aside, which the loops break by file order)."""
    plain = Directions(ScoreMatrix.from_features(images, texts).in_memory())
    smr, galr = rerank(plain, "smr", TUNED), rerank(plain, "galr", TUNED)
    for side in ("i2t", "t2i"):
        scores = getattr(plain, side).block(slice(None), slice(None)).astype(np.float64)
        columns = Columns.of(scores)
        for query in (0, len(scores) // 2):
            one = slice(query, query + 1), slice(0, scores.shape[1])
            if not np.allclose(getattr(smr, side).block(*one)[0], looped_smr(scores, columns, query), atol=1e-9):
                return False
            theirs, found = looped_galr(scores, columns, query), getattr(galr, side).block(*one)[0]
            if not np.array_equal(theirs > 0, found > 0):
                return False
    return True


def main() -> int:
    torch.set_num_threads(2)
    images, texts, owner = random_features()
    matches = Matches.own(owner, IMAGES)
    if not same_scores(images, texts):
        print("the loops and the tiles disagree", file=sys.stderr)
        return 1
    value = median_s(lambda: ours(images, texts, matches))
    plain = ScoreMatrix.from_features(images, texts)
    scores = np.concatenate([tile for _, tile in plain.row_tiles()]).astype(np.float64)
    peer_value = loop_s(scores, owner, to_texts=True) + loop_s(np.ascontiguousarray(scores.T), owner, to_texts=False)
    shape = f"{IMAGES} x {IMAGES * CAPTIONS}"
    peer = f"loops over queries and candidates, timed on {LOOPED_QUERIES} queries a direction, scaled"
    done = [
        report(f"recall + SMR + GaLR, {shape}, both directions", value, "s", 10.0, peer, peer_value),
        report(f"recall + SMR + GaLR, {shape}, both directions: about a second", value, "s", 1.2),
    ]
    grid: Callable[[], object] = lambda: choose_smr(plain, owner)  # noqa: E731
    done.append(report(f"36 pairs of SMR's gammas, {shape}, both directions", median_s(grid, repeats=5), "s", 10.0))
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
