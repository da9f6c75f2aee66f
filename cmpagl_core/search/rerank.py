"""The nearest images of a text, re-scored by the ITM head (section 4): cosine plus match probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cmpagl_core.encoders.encode import encode_image_tokens
from cmpagl_core.errors import UsageError
from cmpagl_core.files import scratch_folder
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.itm import Candidates, match_probabilities
from cmpagl_core.runs import LoadedModel
from cmpagl_core.search.query import Hit

CANDIDATES = 32


def rerank_with_itm(loaded: LoadedModel, text: str, hits: Sequence[Hit], k: int, progress: Progress) -> list[Hit]:
    """The k best of `hits` by cosine + ITM match probability; a missing image keeps its cosine.

    Raises UsageError if the run has no ITM head, DataError for an image that is now broken.
    """
    if loaded.model.itm_head is None:
        raise UsageError("this run has no ITM head", hint="leave out --rerank, or train with losses.itm above 0")
    there = [row for row, hit in enumerate(hits) if hit.image.path.is_file()]
    scores = np.array([hit.score for hit in hits])
    if there:
        images = [hits[row].image for row in there]
        pairs = Candidates(np.arange(len(there)), np.zeros(len(there), dtype=np.int64))
        with scratch_folder("itm") as folder:
            image_tokens = encode_image_tokens(loaded, images, folder / "tokens.npy", progress)
            scores[there] += match_probabilities(loaded, image_tokens, [text], pairs, progress)
    order = sorted(range(len(hits)), key=lambda row: (-scores[row], hits[row].image.image_id))[:k]
    return [replace(hits[row], rank=rank, score=float(scores[row])) for rank, row in enumerate(order, start=1)]
