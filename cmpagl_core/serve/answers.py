"""Answers searches for many clients from one Searcher: in one thread, together where they came together (ours).

Queries that wait while another is answered are answered in one pass over the features. The last rankings are kept, so
that scrolling through an answer does not search again.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import OrderedDict
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cmpagl_core.progress import Silent
from cmpagl_core.search.filters import Filters
from cmpagl_core.search.narrowing import Narrowed, Ranked
from cmpagl_core.search.query import Hit, ImageQuery, Query, TextQuery, leaves
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve.parameters import DEEPEST, DEEPEST_DIVERSE, SearchRequest
from cmpagl_core.serve.problems import RequestError

_WAITING = 512
_TOGETHER = 64
_FIRST_DEPTH = 240  # hits that are ranked at first; more when someone scrolls there
_KEPT_RANKINGS = 256  # the last ones
_KEPT_HITS = 4_000_000  # in all of them: 64 MB
_KEPT_MASKS = 8


@dataclass(frozen=True, eq=False)
class Answer:
    """A part of a ranking. total: all images that are hits; reachable: those that can be asked for.

    doubts: sentences on why the answer may mean little.
    """

    hits: list[Hit]
    rows: list[int]
    total: int
    reachable: int
    doubts: list[str]


@dataclass(frozen=True, eq=False)
class _Job:
    query: Query
    depth: int
    narrowed: Narrowed
    together: Hashable  # jobs with the same value can be answered in one pass
    itm: bool = False
    done: Future[Any] = field(default_factory=Future)


class Answers:
    """start: begin to answer; stop: end the thread."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = Searcher(searcher.gallery, lambda: searcher.encoder, Silent())
        self.gallery = searcher.gallery
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_WAITING)
        self._rankings: OrderedDict[Hashable, Ranked] = OrderedDict()
        self._masks: OrderedDict[Filters, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to answer, and make a large gallery's int8 store beside it."""
        self._thread = threading.Thread(target=self._work, name="searches", daemon=True)
        self._thread.start()
        threading.Thread(target=self.searcher.prepare, name="store", daemon=True).start()

    def stop(self) -> None:
        """Answer what waits, then end."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout=5)

    async def search(self, asked: SearchRequest) -> Answer:
        """The part of the ranking that was asked for. Raises as `Searcher.search`, RequestError when too many wait."""
        narrowed = Narrowed(await asyncio.to_thread(self._mask, asked.filters), asked.min_score, asked.diverse)
        doubts = self.searcher.doubts([asked.query])
        allowed = len(self.gallery) if narrowed.where is None else int(np.count_nonzero(narrowed.where))
        if not allowed:
            return Answer([], [], 0, 0, ["the filters leave no image"])
        if asked.rerank == "itm":
            return await self._search_with_itm(asked, narrowed, doubts)
        reachable = min(allowed, DEEPEST_DIVERSE if asked.diverse else DEEPEST)
        ranked = await self._ranked(asked, narrowed, reachable)
        if asked.diverse or asked.min_score is not None:
            reachable = min(reachable, len(ranked))
        total = allowed if reachable == min(allowed, DEEPEST) else reachable
        stop = min(asked.offset + asked.k, reachable)
        hits = await asyncio.to_thread(self.searcher.hits, ranked, asked.offset, stop)
        return Answer(hits, ranked.rows[asked.offset : stop].tolist(), total, reachable, doubts)

    async def run(self, query: Query, k: int) -> Ranked:
        """The k nearest images of a query, without filters."""
        return await self._submit(_Job(query, k, Narrowed(), None))  # type: ignore[no-any-return]

    async def _ranked(self, asked: SearchRequest, narrowed: Narrowed, reachable: int) -> Ranked:
        """A ranking that is deep enough, perhaps one that is known."""
        wanted = asked.offset + asked.k
        whole = asked.diverse or asked.min_score is not None  # their number of hits is known only at the end
        depth = reachable if whole or wanted > _FIRST_DEPTH else min(reachable, _FIRST_DEPTH)
        kind = (asked.filters, asked.min_score, asked.diverse)
        key = (asked.query, *kind)
        with self._lock:
            known = self._rankings.get(key)
            if known is not None and (whole or len(known) >= min(depth, wanted)):
                self._rankings.move_to_end(key)
                return known
        ranked: Ranked = await self._submit(_Job(asked.query, depth, narrowed, kind))
        uploaded = any(isinstance(leaf, ImageQuery) for leaf in leaves([asked.query]))
        if not uploaded and asked.filters.inside is None:  # such files are gone soon
            self._keep(key, ranked)
        return ranked

    async def _search_with_itm(self, asked: SearchRequest, narrowed: Narrowed, doubts: list[str]) -> Answer:
        hits: list[Hit] = await self._submit(_Job(asked.query, asked.offset + asked.k, narrowed, object(), itm=True))
        part = hits[asked.offset :]
        rows = [self.searcher.row_of(hit.image.image_id) for hit in part]
        return Answer(part, rows, len(hits), len(hits), doubts)

    async def _submit(self, job: _Job) -> Any:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise RequestError(503, "too many searches are waiting", hint="try again in a second") from None
        return await asyncio.wrap_future(job.done)

    def _mask(self, filters: Filters) -> Any:
        """[N], bool, or None for all."""
        if not filters.are_given:
            return None
        if filters.inside is not None:  # a file that is gone soon
            return filters.mask(self.gallery)
        with self._lock:
            if filters in self._masks:
                return self._masks[filters]
        mask = filters.mask(self.gallery)
        with self._lock:
            self._masks[filters] = mask
            while len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
        return mask

    def _keep(self, key: Hashable, ranked: Ranked) -> None:
        with self._lock:
            self._rankings[key] = ranked
            hits = sum(map(len, self._rankings.values()))
            while len(self._rankings) > _KEPT_RANKINGS or (hits > _KEPT_HITS and len(self._rankings) > 1):
                hits -= len(self._rankings.popitem(last=False)[1])

    def _work(self) -> None:
        if self.gallery.tower is not None:
            self.searcher.search([TextQuery("first")], 1)  # opens what the first query would wait for
        while (job := self._jobs.get()) is not None:
            waiting = [job]
            ended = False
            while len(waiting) < _TOGETHER and not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    ended = True
                    break
                waiting.append(more)
            groups: dict[Hashable, list[_Job]] = {}
            for one in waiting:
                if one.done.set_running_or_notify_cancel():  # else its client has gone
                    groups.setdefault(one.together, []).append(one)
            for group in groups.values():
                self._answer(group)
            if ended:
                return

    def _answer(self, group: list[_Job]) -> None:
        try:
            if group[0].itm:
                group[0].done.set_result(
                    self.searcher.search_with_itm(group[0].query, group[0].depth, group[0].narrowed)
                )
                return
            depth = max(job.depth for job in group)
            found = self.searcher.rank([job.query for job in group], depth, group[0].narrowed)
        except Exception as error:  # noqa: BLE001  # told to whoever waits for it
            if len(group) == 1:
                group[0].done.set_exception(error)
                return
            for job in group:
                self._answer([replace(job)])
            return
        for job, ranked in zip(group, found, strict=True):
            kept = min(job.depth, len(ranked))
            job.done.set_result(Ranked(ranked.scores[:kept].copy(), ranked.rows[:kept].copy()))
