"""cmpagl from Python: the functions that `cmpagl_core` offers by name, each as its command without a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.prepare import prepare as prepare_data
from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.datasets.prepared import open_prepared as open_folder
from cmpagl_core.datasets.request import PrepareRequest
from cmpagl_core.device import choose_device
from cmpagl_core.evaluation.evaluate import EvaluateOptions, EvaluateRequest
from cmpagl_core.evaluation.evaluate import evaluate as evaluate_request
from cmpagl_core.evaluation.recall import Matches, RecallResult, recall
from cmpagl_core.evaluation.result import RetrievalReport
from cmpagl_core.progress import Progress, Silent
from cmpagl_core.ranking.rerank import Directions, Gammas, Reranking, RerankParams
from cmpagl_core.ranking.rerank import rerank as rerank_scores
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.runs import Run
from cmpagl_core.runs import open_run as open_run_folder
from cmpagl_core.search.opening import open_searcher
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.session import Session
from cmpagl_core.training.start import TrainRequest, start_training
from cmpagl_core.workspace import Workspace


def prepare(
    source: str, workspace: str | Path = ".", progress: Progress | None = None, **options: Any
) -> PreparedDataset:
    """Prepare a data set, as `cmpagl prepare`. options: fields of PrepareRequest, such as images and annotations."""
    request = PrepareRequest(source, **options)  # type: ignore[arg-type]  # checked there
    return open_folder(prepare_data(request, Workspace(Path(workspace)), progress or Silent()).root)


def open_data(folder: str | Path) -> PreparedDataset:
    """A prepared data set by its folder."""
    return open_folder(Path(folder))


def open_run(folder: str | Path) -> Run:
    """A run by its folder."""
    return open_run_folder(Path(folder))


def train(
    recipe: str | Path,
    workspace: str | Path = ".",
    *,
    data: str | None = None,
    name: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    progress: Progress | None = None,
) -> Run:
    """Train a recipe by its name or file, as `cmpagl train`. overrides: as in --set."""
    request = TrainRequest(str(recipe), data, name, seed, tuple(overrides), resume=False)
    return start_training(request, Workspace(Path(workspace)), progress or Silent(), choose_device(device))


def evaluate(
    run: str | None = None,
    workspace: str | Path = ".",
    *,
    split: str = "test",
    rerank: str = "default",
    device: str = "auto",
    progress: Progress | None = None,
) -> RetrievalReport:
    """Recalls of a run, the newest if none is named, as `cmpagl evaluate`."""
    request = EvaluateRequest(run=run, split=split, options=EvaluateOptions(rerank=rerank))
    return evaluate_request(_session(workspace, device, progress), request).report


def open_index(
    name: str | None = None, workspace: str | Path = ".", *, device: str = "auto", progress: Progress | None = None
) -> Searcher:
    """An index by its name or folder, the newest if none is named, ready to be searched."""
    return open_searcher(_session(workspace, device, progress), name)


def evaluate_scores(scores: NDArray[Any], caption_image: Sequence[int]) -> RecallResult:
    """Recalls in percent of anybody's scores [images, captions], in expectation over ties (protocol `rsitr`).

    caption_image: the row of each caption's image. Raises DataError for rows or scores that make no sense.
    """
    return recall(ScoreMatrix.from_array(np.asarray(scores)), Matches.own(np.asarray(caption_image), len(scores)))


def rerank(
    scores: NDArray[Any],
    name: Reranking,
    *,
    temperature: float | None = None,
    gammas: tuple[float, float] | None = None,
    form: str = "multiply",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Anybody's scores [images, captions] re-ranked: images x captions, and captions x images.

    name: smr (with gammas), galr, csls, dual_softmax or sinkhorn (with a temperature). The parameters belong to a
    selection split, never to the tested one. Raises UsageError where they are missing.
    """
    smr = None if gammas is None else Gammas(form, *gammas)  # type: ignore[arg-type]  # checked where it is used
    params = RerankParams(smr=smr, dual_softmax=temperature, sinkhorn=temperature)
    found = rerank_scores(Directions(ScoreMatrix.from_array(np.asarray(scores))), name, params)
    return _whole(found.i2t), _whole(found.t2i)


def _whole(scores: ScoreMatrix) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(block, dtype=np.float64) for _, block in scores.row_tiles()])


def _session(workspace: str | Path, device: str, progress: Progress | None) -> Session:
    return Session(Workspace(Path(workspace)), progress or Silent(), lambda: choose_device(device))
