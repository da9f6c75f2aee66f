"""ITM re-ranking: the fusion encoder predicts for each candidate pair whether it matches (section 4).

A pair costs a pass through the upper BERT layers, so only candidates are scored: every image's k best texts and
every text's k best images. Each distinct caption passes the lower layers once, each image's keys and values are
computed once for all its texts, and texts are batched by length.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.device import autocast
from cmpagl_core.encoders.encode import encode_image_tokens, encode_text_groups
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.encoders.length_groups import length_groups
from cmpagl_core.errors import UsageError
from cmpagl_core.files import scratch_folder
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.galr import candidates
from cmpagl_core.ranking.scores import Flipped, Floats, Rows, ScoreMatrix, ScoreSource
from cmpagl_core.runs import LoadedModel

if TYPE_CHECKING:  # not imported at the top: known match probabilities need no transformers
    from cmpagl_core.models.bert import CrossAttentionCache

ALL_PAIRS = 0  # as k: score every image with every text

_TEXTS_AT_ONCE = 8_192  # 350 MB of BERT-base's states in fp32
_IMAGES_AT_ONCE = 16
_TOKENS_PER_PASS = 2048
_WORTH_SAYING_S = 5.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """Distinct pairs of an image row and a distinct text's row, sorted by image, then text."""

    image: Rows
    text: Rows

    def __len__(self) -> int:
        return len(self.image)

    @property
    def sha256(self) -> str:
        """Hash of the pairs in their order."""
        return hashlib.sha256(np.stack([self.image, self.text]).astype("<i8").tobytes()).hexdigest()


Match = Callable[[Sequence[str], Candidates], NDArray[np.float32]]  # of distinct texts: a probability of each pair


@dataclass(frozen=True, eq=False)
class PackedTexts:
    """Token states of texts, concatenated without padding."""

    tokens: Tensor  # [sum of lengths, H]
    start: Rows  # [U]
    length: Rows  # [U]

    def gather(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Padded to the longest of these: text_tokens [P, L, H] and attention_mask [P, L] bool."""
        places = np.arange(self.length[rows].max())
        mask = places < self.length[rows, None]
        index = np.where(mask, self.start[rows, None] + places, 0)
        device = self.tokens.device
        return self.tokens[torch.from_numpy(index).to(device)], torch.from_numpy(mask).to(device)


def itm_scores(loaded: LoadedModel, split: DataSplit, scores: ScoreMatrix, k: int, progress: Progress) -> ScoreMatrix:
    """Cosine + match probability on candidates, cosine elsewhere: one matrix for both directions.

    scores: cosines of the split's images x captions. k: candidates per query and direction, clamped to the gallery;
    ALL_PAIRS scores everything and leaves the cosines out, for a model without pre-alignment.
    Raises UsageError for a k below 0, DataError for an unreadable image.
    """
    return matched_scores(split, scores, k, lambda texts, pairs: match_split(loaded, split, texts, pairs, progress))


def matched_scores(split: DataSplit, scores: ScoreMatrix, k: int, match: Match) -> ScoreMatrix:
    """As `itm_scores`, with match probabilities from anywhere. Raises UsageError for a k below 0."""
    if k < 0:
        raise UsageError(f"itm_k = {k} must be 0 (every pair) or more")
    texts, text_of = unique_texts(split.captions)
    pairs = choose_candidates(scores, text_of, len(texts), k)
    base = ScoreMatrix.zeros(scores.shape, scores.budget_bytes) if k == ALL_PAIRS else scores
    return base.with_candidates(*_to_captions(pairs, match(texts, pairs), text_of))


def match_split(
    loaded: LoadedModel, split: DataSplit, texts: Sequence[str], pairs: Candidates, progress: Progress
) -> NDArray[np.float32]:
    """Probability [pairs] that a split's image and a text match. Raises DataError for an unreadable image."""
    with scratch_folder("itm") as folder:
        image_tokens = encode_image_tokens(loaded, split.images, folder / "tokens.npy", progress)
        return match_probabilities(loaded, image_tokens, texts, pairs, progress)


def choose_candidates(scores: ScoreMatrix, text_of: Rows, texts: int, k: int) -> Candidates:
    """The union of every image's k best distinct texts and every text's k best images.

    scores: images x captions. text_of [M]: each caption's row among the `texts` distinct texts. All ties with the k-th
    are candidates too, so that file order decides nothing.
    """
    images = scores.shape[0]
    if k == ALL_PAIRS:
        image, text = np.divmod(np.arange(images * texts), texts)
        return Candidates(image, text)
    first = np.unique(text_of, return_index=True)[1]  # one caption of each text
    distinct = ScoreMatrix(_Columns(scores, first), scores.budget_bytes)
    image, text, _ = candidates(distinct, k)
    text_too, image_too, _ = candidates(distinct.transposed(), k)
    keys = np.unique(np.concatenate([image * texts + text, image_too * texts + text_too]))
    return Candidates(*np.divmod(keys, texts))


def match_probabilities(
    loaded: LoadedModel,
    image_tokens: NDArray[np.float16],
    texts: Sequence[str],
    pairs: Candidates,
    progress: Progress,
) -> NDArray[np.float32]:
    """Probability [pairs] that image and text match. image_tokens: [N, 1 + T, C], memory-mapped or not."""
    found = np.empty(len(pairs), np.float32)
    progress.say(f"itm: {len(pairs):,} pairs of {len(image_tokens):,} images and {len(texts):,} distinct texts")
    # by length, then spelling: the batching of texts must not depend on file order
    order = sorted(range(len(texts)), key=lambda text: (len(texts[text]), texts[text]))
    place_of = np.empty(len(texts), np.int64)
    place_of[order] = np.arange(len(texts))
    started_at = time.monotonic()
    with progress.task("match pairs", len(pairs), "pairs") as advance:
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            packed = pack_texts(loaded, [texts[text] for text in order[start : start + _TEXTS_AT_ONCE]])
            place = place_of[pairs.text] - start
            inside = np.flatnonzero((place >= 0) & (place < len(packed.start)))
            for chosen, cache in _by_image(loaded, image_tokens, pairs.image, inside):
                for part in _passes(packed.length, place, chosen):
                    found[part] = _probabilities(loaded, packed, place[part], cache)
                    advance(len(part))
    elapsed_s = time.monotonic() - started_at
    if elapsed_s >= _WORTH_SAYING_S:
        progress.say(f"itm: {elapsed_s:,.0f} s, {len(pairs) / elapsed_s:,.0f} pairs/s")
    return found


def pack_texts(loaded: LoadedModel, texts: Sequence[str]) -> PackedTexts:
    """The text encoder's token states of each text, computed once."""
    length = np.zeros(len(texts), np.int64)
    groups = []
    for group in encode_text_groups(loaded, texts):
        mask = group.encoding.attention_mask
        length[group.rows] = mask.sum(dim=1).cpu().numpy()
        groups.append((group.rows, group.encoding.tokens[mask]))
    start = np.concatenate([[0], np.cumsum(length)[:-1]])
    first = groups[0][1]
    tokens = torch.empty((int(length.sum()), first.shape[1]), dtype=first.dtype, device=first.device)
    for rows, states in groups:
        places = np.concatenate([np.arange(start[row], start[row] + length[row]) for row in rows])
        tokens[torch.from_numpy(places).to(tokens.device)] = states
    return PackedTexts(tokens, start, length)


def _by_image(
    loaded: LoadedModel, image_tokens: NDArray[np.float16], image: Rows, inside: Rows
) -> Iterator[tuple[Rows, CrossAttentionCache]]:
    """For each image: its pairs among `inside` (sorted by image), and its keys and values."""
    owners, first = np.unique(image[inside], return_index=True)
    parts = np.split(inside, first[1:])
    for start in range(0, len(owners), _IMAGES_AT_ONCE):
        rows = owners[start : start + _IMAGES_AT_ONCE]
        tokens = torch.from_numpy(np.asarray(image_tokens[rows], np.float32)).to(loaded.device)
        with torch.inference_mode(), autocast(loaded.device, loaded.recipe.train.precision):
            caches = loaded.model.cross_attention_cache(tokens)
        for place in range(len(rows)):
            yield parts[start + place], caches.select(torch.tensor([place], device=loaded.device))


def _passes(length: Rows, place: Rows, chosen: Rows) -> Iterator[Rows]:
    """Cut one image's pairs into batches of similar length, within a budget of tokens."""
    by_place = chosen[np.argsort(place[chosen], kind="stable")]
    for rows in length_groups(length[place[by_place]], _fits):
        yield by_place[rows]


def _fits(texts: int, shortest: int, longest: int) -> bool:
    return longest <= 1.5 * shortest + 2 and texts * longest <= _TOKENS_PER_PASS


def _probabilities(
    loaded: LoadedModel, packed: PackedTexts, texts: Rows, cache: CrossAttentionCache
) -> NDArray[np.float32]:
    tokens, mask = packed.gather(texts)
    fusion = loaded.model.fusion_encoder
    if fusion is None:
        raise UsageError("this run has no fusion encoder", hint="evaluate it with --rerank default")
    with torch.inference_mode(), autocast(loaded.device, loaded.recipe.train.precision):
        logits = loaded.model.itm_logits(fusion.first_token(tokens, mask, cache))
    probabilities: NDArray[np.float32] = logits.float().softmax(dim=1)[:, 1].cpu().numpy()
    return probabilities


def _to_captions(
    pairs: Candidates, probabilities: NDArray[np.float32], text_of: Rows
) -> tuple[Rows, Rows, NDArray[np.float32]]:
    """Each pair repeated for every caption with its text: (image rows, caption rows, probabilities)."""
    order = np.argsort(text_of, kind="stable")
    count = np.bincount(text_of)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    copies = count[pairs.text]
    which = np.repeat(np.arange(len(pairs)), copies)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(copies) - copies, copies)
    return pairs.image[which], order[start[pairs.text[which]] + nth], probabilities[which]


@dataclass(frozen=True, eq=False)
class _Columns:
    """Some columns of a matrix, in ascending order, as a source."""

    scores: ScoreMatrix
    columns: Rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.scores.shape[0], len(self.columns)

    def block(self, rows: slice, cols: slice) -> Floats:
        chosen = self.columns[cols]
        span = slice(int(chosen[0]), int(chosen[-1]) + 1)
        return self.scores.block(rows, span)[:, chosen - span.start]

    def at(self, rows: Rows, cols: Rows) -> Floats:
        return self.scores.at(rows, self.columns[cols])

    def transposed(self) -> ScoreSource:
        return Flipped(self)
