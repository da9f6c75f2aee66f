"""Evaluation holds tiles, never queries x gallery."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cmpagl_core.evaluation.metrics import rank_metrics
from cmpagl_core.evaluation.recall import Matches, rank_queries
from cmpagl_core.ranking.rerank import Directions, Gammas, Reranking, RerankParams, rerank
from cmpagl_core.ranking.scores import ScoreMatrix

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "bench_memory.py"
TUNED = RerankParams(Gammas("add", 1.0, 2.0), 20.0, 20.0)


@pytest.mark.parametrize("name", ["smr", "csls", "dual_softmax", "sinkhorn"])  # GaLR holds its 30 candidates a query
def test_within_a_small_budget_no_re_ranking_holds_the_matrix(name: Reranking) -> None:
    images, texts = 200, 3000
    whole_bytes = images * texts * 8
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((images, 8)), rng.standard_normal((texts, 8))
    matches = Matches.own(np.arange(texts) % images, images)
    tracemalloc.start()
    try:
        scores = ScoreMatrix.from_features(left, right, budget_bytes=2**20)
        both = rerank(Directions(scores), name, TUNED)
        for side, answers in ((both.i2t, matches), (both.t2i, matches.transposed())):
            rank_metrics(side, answers, rank_queries(side, answers))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < whole_bytes / 2


@pytest.mark.slow
def test_five_thousand_images_with_all_captions_fit_in_a_gibibyte() -> None:
    done = subprocess.run([sys.executable, BENCHMARK], capture_output=True, text=True, check=True, timeout=1200)
    assert json.loads(done.stdout)["ok"] is True
