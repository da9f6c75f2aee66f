"""Searcher: a gallery that is opened once and answers many queries.

A text query needs only the text tower of the index or of the run, so neither torch nor a model; an image query, or a
gallery without a tower, needs the gallery's encoder, which is rebuilt at the first such query.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cmpagl_core.encoders.prompts import encode_prompted, read_templates
from cmpagl_core.encoders.text_tower import TextTower, open_text_tower
from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.progress import Progress
from cmpagl_core.search.index import GalleryIndex, places
from cmpagl_core.search.joined import JoinedStore
from cmpagl_core.search.narrowing import ALL, Narrowed, Ranked, distinct_top_k
from cmpagl_core.search.query import (
    CaptionHit,
    CombinedQuery,
    Hit,
    ImageQuery,
    ItemQuery,
    Leaf,
    Query,
    TextQuery,
    combined,
    leaves,
)
from cmpagl_core.search.store_files import open_store
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.store import Store, TopK

if TYPE_CHECKING:  # every import counts in a cold start
    from cmpagl_core.encoders.encoder import EncodedBatch, Encoder, Features
    from cmpagl_core.encoders.image_graph import ImageGraph

_QUERIES_AT_ONCE = 512
_SCANNED_ROWS = 131_072  # smaller galleries are searched in milliseconds anyway
_PASSES_UNTIL_IT_PAYS = (
    128  # single-query searches that take as long as building an int8 store, a few seconds per million
)
_QUERIES_A_PASS = 8  # queries that, searched together, cost as much as a single one


class Searcher:
    """Answers queries on one gallery.

    make_encoder: rebuilds the gallery's encoder. find_tower: the text tower of a gallery that has none of its own.
    find_graph: its image encoder for ONNX Runtime, which needs no torch, if there is one.
    """

    def __init__(
        self,
        gallery: GalleryIndex,
        make_encoder: Callable[[], Encoder],
        progress: Progress,
        find_tower: Callable[[], TextTower | None] = lambda: None,
        find_graph: Callable[[], ImageGraph | None] = lambda: None,
    ) -> None:
        self.gallery = gallery
        self._make_encoder, self._progress, self._find_tower = make_encoder, progress, find_tower
        self._find_graph = find_graph
        self._images: Store = open_store(gallery)
        self._passes = 0

    def searching(self, store: Store) -> Searcher:
        """The same gallery and encoder with another store of the images."""
        other = copy(self)
        other._images = store
        return other

    def search(self, queries: Sequence[Query], k: int, narrowed: Narrowed = ALL) -> list[list[Hit]]:
        """The k nearest images of each query, best first. Raises as `rank` does."""
        for doubt in self.doubts(queries):
            self._progress.say(doubt)
        if len(queries) <= _QUERIES_AT_ONCE:
            return [self.hits(ranked) for ranked in self.rank(queries, k, narrowed)]
        found: list[list[Hit]] = []
        with self._progress.task("search", len(queries), "queries") as advance:
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                part = queries[start : start + _QUERIES_AT_ONCE]
                found += [self.hits(ranked) for ranked in self.rank(part, k, narrowed)]
                advance(len(part))
        return found

    def rank(self, queries: Sequence[Query], k: int, narrowed: Narrowed = ALL) -> list[Ranked]:
        """Rows and scores of the k nearest images of each query, best first.

        Raises DataError for an unreadable query image or an item that is not there, and what rebuilding the encoder
        raises.
        """
        self._count_passes(len(queries))
        features = self._encode(queries)
        if narrowed.distinct:
            kept, hidden = distinct_top_k(self._images, self.gallery, features, k, narrowed.where)
            found = [Ranked.of(pairs) for pairs in kept]
            if hidden:
                self._progress.say(f"{hidden:,} near-duplicates and overlapping tiles are hidden")
        else:
            best = self._images.top_k(features, k, narrowed.where)
            found = [Ranked(scores, rows) for scores, rows in zip(best.scores, best.rows, strict=True)]
        return [ranked.at_least(narrowed.min_score) for ranked in found]

    def hits(self, ranked: Ranked, start: int = 0, stop: int | None = None) -> list[Hit]:
        """What a part of a ranking stands for."""
        gallery, part = self.gallery, slice(start, stop)
        pairs = zip(ranked.scores[part].tolist(), ranked.rows[part].tolist(), strict=True)
        return [
            Hit(rank, gallery.image(row), score, tuple(gallery.captions_of(row)))
            for rank, (score, row) in enumerate(pairs, start=start + 1)
        ]

    def doubts(self, queries: Sequence[Query]) -> list[str]:
        """Why the answers may mean little: texts that are too long, or of which no word is known; a sentence each."""
        texts = [query.words for query in leaves(queries) if isinstance(query, TextQuery)]
        if self._tower is None or not texts:
            return []
        readings = [self._tower.read(text) for text in texts]
        cut, unknown = sum(reading.cut for reading in readings), sum(reading.known == 0 for reading in readings)
        one, doubts = len(texts) == 1, []
        if cut:
            subject = "the query is" if one else f"{cut:,} of {len(texts):,} queries are"
            doubts.append(f"{subject} too long: the model reads the first {self._tower.info.max_tokens} tokens")
        if unknown:
            subject = "the query" if one else f"{unknown:,} of {len(texts):,} queries"
            doubts.append(f"no word of {subject} is known to the model, so the ranking means little")
        return doubts

    def prepare(self) -> None:
        """Do now what the first hundred queries would do: a large gallery gets its int8 store, with identical results.

        It takes seconds per million images; other threads can search meanwhile.
        """
        self._images = self._prepared(self._images)

    def _prepared(self, store: Store) -> Store:
        if isinstance(store, JoinedStore):
            return store.changed(self._prepared)
        if len(store) < _SCANNED_ROWS or not isinstance(store, ExactStore):
            return store
        from cmpagl_core.search.stores.int8 import Int8Store  # torch, which one query does without

        return Int8Store(store, self._progress)

    def search_captions(self, queries: Sequence[Query], k: int) -> list[list[CaptionHit]]:
        """The k nearest captions of each query. Raises DataError if the gallery has none, and as `search`."""
        gallery = self.gallery
        if not len(gallery.captions):
            raise DataError(f"gallery {gallery.info.name} has no captions", hint="index a data set with captions")
        best = ExactStore(gallery.text_features, places(gallery.captions)).top_k(self._encode(queries), k)
        return [
            [
                CaptionHit(rank, gallery.captions[text], score, gallery.images_of(text))
                for rank, (score, text) in enumerate(found, start=1)
            ]
            for found in _pairs(best)
        ]

    def search_with_itm(self, query: Query, k: int, narrowed: Narrowed = ALL) -> list[Hit]:
        """The k best after ITM has re-scored the nearest 32 (or k); scores are cosine + match probability.

        Raises UsageError for an image query or a model without an ITM head, DataError for an image that is now broken.
        """
        if not isinstance(query, TextQuery):
            raise UsageError("--rerank itm compares a text with images", hint="leave out --image")
        from cmpagl_core.encoders.cmpagl import CmpaglEncoder
        from cmpagl_core.search.rerank import CANDIDATES, rerank_with_itm

        encoder = self.encoder
        if not isinstance(encoder, CmpaglEncoder):
            raise UsageError(f"{encoder.name} has no ITM head", hint="leave out --rerank")
        hits = self.search([query], max(k, CANDIDATES), narrowed)[0]
        return rerank_with_itm(encoder.loaded, query.words, hits, k, self._progress)

    @cached_property
    def encoder(self) -> Encoder:
        """The gallery's encoder."""
        return self._make_encoder()

    def _count_passes(self, queries: int) -> None:
        """Switch to an int8 store once the queries so far would have paid for it."""
        self._passes += -(-queries // _QUERIES_A_PASS)
        if self._passes >= _PASSES_UNTIL_IT_PAYS:
            self.prepare()

    def _encode(self, queries: Sequence[Query]) -> Features:
        """Features of queries [Q, D], each part of a combined one encoded once."""
        parts = list(dict.fromkeys(leaves(queries)))
        place, encoded = {part: row for row, part in enumerate(parts)}, self._encode_parts(parts)
        features = np.empty((len(queries), encoded.shape[1]), dtype=np.float32)
        for row, query in enumerate(queries):
            if isinstance(query, CombinedQuery):
                features[row] = combined(query, [encoded[place[part.query]] for part in query.parts])
            else:
                features[row] = encoded[place[query]]
        return features

    def _encode_parts(self, queries: Sequence[Leaf]) -> Features:
        """Features of texts, images and items [Q, D]."""
        texts = {row: query.words for row, query in enumerate(queries) if isinstance(query, TextQuery)}
        usual = self.gallery.info.reading
        images = {row: _image(query, usual) for row, query in enumerate(queries) if isinstance(query, ImageQuery)}
        parts = [np.empty((0, self.gallery.image_features.shape[1]), dtype=np.float32)]
        if texts:
            parts.append(self._encode_texts(list(texts.values())))
        if images:
            from cmpagl_core.encoders.encoder import collect

            parts.append(collect(self._encode_images(list(images.values())), len(images), self._progress))
        items = {row: self.row_of(query.item) for row, query in enumerate(queries) if isinstance(query, ItemQuery)}
        if items:
            parts.append(np.asarray(self.gallery.image_features[list(items.values())]))
        order = np.argsort([*texts, *images, *items], kind="stable")
        return np.concatenate(parts if parts[0].shape[1] == parts[-1].shape[1] else parts[1:])[order]

    def row_of(self, item: str) -> int:
        """The row of an image by its id, else by its number. Raises DataError when there is none."""
        ids = self.gallery.image_ids
        if self.gallery.tie_order is None:  # sorted by id, but for indexes that are joined
            row = bisect_left(ids, item)
            if row < len(ids) and ids[row] == item:
                return row
        if (self.gallery.tie_order is not None or self.gallery.info.kind == "merged") and item in ids:
            return list(ids).index(item)
        if item.isdecimal() and int(item) < len(self.gallery):
            return int(item)
        raise DataError(
            f"index {self.gallery.info.name} has no image {item!r}", hint="give an image id, or a row from 0 on"
        )

    def _encode_images(self, images: list[ImageRef]) -> Generator[EncodedBatch, None, None]:
        if self._graph is None:
            return self.encoder.encode_images(images)
        from cmpagl_core.encoders.image_graph import views_of

        return self._graph.batches(images, views_of(self.gallery.info.preprocessing))

    @cached_property
    def _graph(self) -> ImageGraph | None:
        return self._find_graph()

    def _encode_texts(self, texts: list[str]) -> Features:
        encode = self.encoder.encode_texts if self._tower is None else self._tower.encode
        return encode_prompted(encode, texts, read_templates(self.gallery.info.templates))

    @cached_property
    def _tower(self) -> TextTower | None:
        tower = self._find_tower() if self.gallery.tower is None else open_text_tower(self.gallery.tower)
        if tower is None:
            return None
        return tower if tower.info.model_sha256 == self.gallery.info.model_sha256 else None


def _image(query: ImageQuery, usual: Reading) -> ImageRef:
    if query.path.is_dir():
        raise DataError(f"{query.path} is a folder", hint="pass an image file")
    if not query.path.is_file():
        raise DataError(f"image {query.path} does not exist")
    return ImageRef(query.path.name, query.path, reading=query.reading or usual)


def _pairs(best: TopK) -> list[list[tuple[float, int]]]:
    """Scores and rows of each query."""
    return [
        list(zip(scores, rows, strict=True))
        for scores, rows in zip(best.scores.tolist(), best.rows.tolist(), strict=True)
    ]
