"""CSLS and dual softmax for single queries: the other queries they need are a bank of training captions [ours].

Both subtract from a cosine what an image scores with queries in general, so that images which are near every query do
not crowd out others. With a bank in place of the other queries, this is one offset per image:

    CSLS:          o_i = mean of the 10 greatest cosines of image i with the bank, halved
    dual softmax:  o_i = log sum_b exp(T cos(i, b)) / 2T

A query then ranks images by cos(q, i) - o_i; its own term is the same for all images and is left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.same_caption import caption_key
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.encoders.prompts import encode_prompted, read_templates
from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.ranking.kept_params import read_params
from cmpagl_core.ranking.offsets import CSLS_NEIGHBOURS, log_sum_exp, mean_of_greatest
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.run_data import own_data
from cmpagl_core.runs import Run
from cmpagl_core.search.opening import run_of
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.search.stores.exact import top_k
from cmpagl_core.search.stores.store import TopK
from cmpagl_core.session import Session

BankReranking = Literal["csls", "dual-softmax"]

_BANK_CAPTIONS = 1024
_ROWS_AT_ONCE = 65_536
_KIND = "offsets of a query bank"


@dataclass(frozen=True, eq=False)
class OffsetStore:
    """Images by cosine minus an offset each; an exact scan of unit features [N, D] and offsets [N]."""

    features: NDArray[np.float32]
    offsets: NDArray[np.float32]
    tie_order: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def top_k(self, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None = None) -> TopK:
        """As in `Store`: the products of [q, 1] with [x, -offset]."""
        widened = np.concatenate([queries, np.ones((len(queries), 1), dtype=np.float32)], axis=1)
        rows = cast("NDArray[np.float32]", _Widened(self.features, self.offsets))
        return top_k(rows, widened, k, self.tie_order, where=where)


@dataclass(frozen=True, eq=False)
class _Widened:
    """Features with minus the offset as a further column, joined as they are read: [N, D + 1]."""

    features: NDArray[np.float32]
    offsets: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        return self.features.shape[0], self.features.shape[1] + 1

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return np.concatenate([self.features[rows], -self.offsets[rows][:, None]], axis=1)


def with_bank(session: Session, searcher: Searcher, method: BankReranking, run: str | None = None) -> Searcher:
    """A Searcher on the same gallery that ranks by cosine minus the images' offsets.

    The offsets are kept in the workspace's cache. run: as in `open_searcher`. Raises UsageError for a gallery of a
    model that is not a run, or a run without a chosen temperature; DataError or MismatchError when the run or its
    training captions are missing or have changed.
    """
    if searcher.gallery.info.model_kind == "open_clip":
        raise UsageError(
            f"--rerank {method} needs training captions, and {searcher.gallery.info.model} brings none",
            hint="leave out --rerank, or index with a run",
        )
    trained = run_of(searcher.gallery, session.workspace, run)
    temperature = _temperature(trained) if method == "dual-softmax" else None
    offsets = _kept_offsets(session, searcher, trained, temperature)
    session.progress.say(f"scores are cosines minus each image's {method} offset, from training captions")
    gallery = searcher.gallery
    return searcher.searching(OffsetStore(gallery.image_features, offsets, gallery.tie_order))


def bank_offsets(
    image_features: NDArray[np.float32], bank: NDArray[np.float32], temperature: float | None = None
) -> NDArray[np.float32]:
    """The offset of each image [N] from features [N, D] and a bank's [B, D]: dual softmax at a temperature, or CSLS."""
    offsets = np.empty(len(image_features), dtype=np.float32)
    for start in range(0, len(image_features), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        scores = ScoreMatrix.from_features(np.asarray(image_features[rows]), bank)
        if temperature is None:
            offsets[rows] = mean_of_greatest(scores, CSLS_NEIGHBOURS) / 2
        else:
            offsets[rows] = log_sum_exp(scores, temperature) / (2 * temperature)
    return offsets


def _kept_offsets(session: Session, searcher: Searcher, run: Run, temperature: float | None) -> NDArray[np.float32]:
    features, info = searcher.gallery.image_features, searcher.gallery.info
    made_from = [
        hashlib.sha256(np.ascontiguousarray(features).data).hexdigest(),
        run.info.weights_sha256, run.info.train_sha256, info.templates, info.precision,
        _BANK_CAPTIONS, CSLS_NEIGHBOURS, temperature,
    ]  # fmt: skip
    path = session.workspace.cache / "offsets" / f"{sha256_text(canonical_json(made_from))[:32]}.safetensors"
    kept = _read(path, len(features))
    if kept is not None:
        return kept
    bank = _training_captions(session, run)
    session.progress.say(f"comparing {len(features):,} images with {len(bank):,} training captions, once")
    texts = encode_prompted(searcher.encoder.encode_texts, bank, read_templates(info.templates))  # in batches
    offsets = bank_offsets(features, texts, temperature)
    write_tensor_file(path, {"offsets": offsets}, {"kind": _KIND})
    return offsets


def _read(path: Path, count: int) -> NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        return np.asarray(open_tensor_file(path).array("offsets", "<f4", (count,)))
    except CmpaglError:
        return None  # a cache: computed again


def _training_captions(session: Session, run: Run) -> list[str]:
    """Different training captions of a run's data set, evenly from the whole of it."""
    prepared = own_data(session.workspace, run)
    train, _ = selection_splits(prepared, run.recipe.data.selection, check_files=False)
    different = list({caption_key(text): text for text in train.captions}.values())
    places = np.linspace(0, len(different) - 1, min(len(different), _BANK_CAPTIONS)).round().astype(int)
    return [different[place] for place in places.tolist()]


def _temperature(run: Run) -> float:
    chosen = read_params(run).of("cosine").dual_softmax
    if chosen is None:
        raise UsageError(
            f"{run.root.name} has no temperature for dual softmax",
            hint="call `cmpagl tune smr` first, which chooses it, or use --rerank csls",
        )
    return chosen
