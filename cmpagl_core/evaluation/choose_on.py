"""Features or scores of another split, on which re-rankings of foreign features and scores are chosen (section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.errors import GuardError, MismatchError, UsageError
from cmpagl_core.evaluation.evaluate import cosine_only
from cmpagl_core.evaluation.protocol import require_not_test
from cmpagl_core.evaluation.score_files import equal_scores, open_scores, read_scores_info, require_shape
from cmpagl_core.evaluation.stages import wanted_stages
from cmpagl_core.evaluation.tune import choose_params
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.chain import ChosenParams
from cmpagl_core.ranking.scores import ScoreMatrix

_ELSE = "give features or scores of the val split"


@dataclass(frozen=True, eq=False)
class ChoiceScores:
    """Scores of a split that something is chosen on: images x captions, and whose they are."""

    path: Path
    scores: ScoreMatrix
    caption_image: NDArray[np.int64]
    split_sha256: str
    images: frozenset[str]  # SHA-256 of their files
    array: NDArray[Any] | None = None  # of a score file, as stored


def open_choice_features(path: Path) -> ChoiceScores:
    """Features of another split. Raises GuardError for the test split."""
    features = load_feature_set(path)
    require_not_test(features.info.split, "re-rankings")
    scores = ScoreMatrix.from_features(features.image_features, features.text_features)
    images = frozenset(features.image_sha256)
    return ChoiceScores(path, scores, features.text_image, features.info.split_sha256, images)


def open_choice_scores(path: Path, prepared: PreparedDataset, split: str | None) -> ChoiceScores:
    """A score file of another split, which its description (`export --scores`) or the user names.

    Raises UsageError where neither says which split it is of, GuardError for the test split, MismatchError where both
    differ or the file is of other data.
    """
    info = read_scores_info(path)
    named = split or (None if info is None else info.split)
    if named is None:
        raise UsageError(
            f"{path} does not say which split it is of", hint="say so with --choose-split val, or `export --scores`"
        )
    require_not_test(named, "re-rankings")
    chosen = prepared.split(named)
    if info is not None and info.split_sha256 != chosen.sha256:
        raise MismatchError(
            f"{path} holds scores of the {info.split} split of {info.dataset}, not of {named} of {prepared.name}",
            hint="name its data set with --data",
        )
    array = open_scores(path)
    scores = ScoreMatrix.from_array(array)
    require_shape(scores, chosen, str(path))
    images = frozenset(chosen.picture_sha256)
    return ChoiceScores(path, scores, chosen.caption_image, chosen.sha256, images, array)


def require_other_images(choice: ChoiceScores, tested: Sequence[str], tested_sha256: str) -> None:
    """Refuse to choose on what is tested. tested: SHA-256 of the tested images. Raises GuardError."""
    if choice.split_sha256 and choice.split_sha256 == tested_sha256:
        raise GuardError(
            f"{choice.path} is of the very split that is evaluated, so choosing on it would flatter every re-ranking",
            hint=_ELSE,
        )
    shared = sum(image in choice.images for image in tested)
    if shared:
        raise GuardError(
            f"{choice.path} holds {shared:,} of the {len(tested):,} pictures that are evaluated, so choosing on it "
            "would flatter every re-ranking",
            hint=_ELSE,
        )


def require_other_scores(choice: ChoiceScores, tested: NDArray[Any], path: Path) -> None:
    """Refuse to choose on the tested matrix under another name. Raises GuardError."""
    if choice.array is not None and equal_scores(choice.array, tested):
        raise GuardError(
            f"{choice.path} holds the very scores of {path}, so choosing on it would flatter every re-ranking",
            hint=_ELSE,
        )


def choose_on(choice: ChoiceScores, wanted: str, progress: Progress) -> ChosenParams:
    """The parameters of the re-rankings that are asked for (see `wanted_stages`), on what each re-ranks."""
    nothing = cosine_only(ChosenParams(split_sha256=choice.split_sha256))
    stages = wanted_stages(wanted, nothing.bases)
    return choose_params(stages, lambda _: choice.scores, choice.caption_image, nothing, progress=progress)
