"""Scores with all that makes results of them: under one protocol, or under several without scoring again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmpagl_core import __version__
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.protocol import Overlap, Protocol, Stamp, matches_of
from cmpagl_core.evaluation.result import Queries, RetrievalReport
from cmpagl_core.evaluation.stages import Available, Base, Stage, plan_stages, score_stages
from cmpagl_core.ranking.scores import ScoreMatrix


@dataclass(frozen=True)
class EvaluateOptions:
    """What to show and how; `rerank` is explained at `plan_stages`."""

    protocol: Protocol = "rsitr"
    rerank: str = "default"
    itm_k: int | None = None  # None: the recipe's
    samples: int = 1000  # of the bootstrap
    seed: int = 0  # of the bootstrap


@dataclass(frozen=True)
class Tested:
    """Who is asked what: the part of a split, or of a feature set, that evaluation needs."""

    dataset: str
    split: str
    split_sha256: str
    manifest_sha256: str
    image_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: NDArray[np.int64]

    @classmethod
    def of(cls, split: DataSplit, manifest_sha256: str) -> Tested:
        return cls(
            split.dataset,
            split.name,
            split.sha256,
            manifest_sha256,
            split.image_ids,
            split.captions,
            split.caption_image,
        )


@dataclass(frozen=True)
class ScoredModel:
    """What made the scores."""

    name: str
    sha256: str
    overlap: Overlap | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """A tested split with a model's scores of it, images x texts, for each of the bases that are available."""

    tested: Tested
    scores: Callable[[Base], ScoreMatrix]
    available: Available
    model: ScoredModel

    def report(self, options: EvaluateOptions) -> RetrievalReport:
        """The result under the options' protocol. Raises UsageError for options that cannot be had."""
        if options.samples < 1:
            raise UsageError(f"samples = {options.samples} must be at least 1")
        tested = self.tested
        stages, notes = plan_stages(options.rerank, self.available)
        matches = matches_of(options.protocol, tested.caption_image, len(tested.image_ids), tested.captions)
        rows, queries = score_stages(
            stages,
            self.scores,
            self.available,
            matches,
            Queries(tested.image_ids, tested.caption_image),
            options.samples,
            options.seed,
        )
        notes = (*notes, *self._warnings())
        return RetrievalReport(self._stamp(options.protocol, stages), rows, queries, notes)

    def _warnings(self) -> tuple[str, ...]:
        overlap = self.model.overlap
        return () if overlap is None else overlap.sentences(self.model.name)

    def _stamp(self, protocol: Protocol, stages: tuple[Stage, ...]) -> Stamp:
        tested, model, available = self.tested, self.model, self.available
        steps = {stage.name: available.steps(stage) or () for stage in stages}
        chosen = {name: tuple(step for step in found if step.chosen_on) for name, found in steps.items()}
        return Stamp(
            protocol=protocol,
            dataset=tested.dataset,
            split=tested.split,
            split_sha256=tested.split_sha256,
            manifest_sha256=tested.manifest_sha256,
            images=len(tested.image_ids),
            captions=len(tested.captions),
            model=model.name,
            model_sha256=model.sha256,
            stages=tuple(stage.name for stage in stages),
            rerank={name: found for name, found in chosen.items() if found},
            selection_sha256=available.params.split_sha256 if any(chosen.values()) else "",
            itm_k=available.itm_k if any(stage.base == "itm" for stage in stages) else None,
            overlap=model.overlap,
            code=__version__,
        )
