"""How well an index finds its own images by their captions: recalls, scenes, worst queries, beside another index's.

By cosine, each caption a query of its own (protocol `rsitr`), ties as expectations; `cmpagl evaluate` has the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.errors import CmpaglError, DataError, MismatchError
from cmpagl_core.evaluation.recall import KS, Matches, Ranking, Recalls, rank_queries, recalls, summarise
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.stores.exact import top_k
from cmpagl_core.workspace import Workspace

WORST, _FOUND = 24, 4
_MOST_SCORES = 4_000_000_000  # images x captions; minutes on two cores
ALL = "all"


@dataclass(frozen=True)
class Subset:
    """The images that are tested: rows of the index, with a scene class each, "" if unknown.

    splits: all that can be chosen; empty where the data set is not in the workspace.
    """

    split: str
    splits: tuple[str, ...]
    rows: NDArray[np.int64]
    scenes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scored:
    """One index on a subset: texts [M], links of captions to the subset's images [M], and both directions' ranks."""

    index: GalleryIndex
    texts: NDArray[np.int64]
    owners: NDArray[np.int64]
    i2t: Ranking
    t2i: Ranking


def chosen_subset(index: GalleryIndex, workspace: Workspace, split: str | None) -> Subset:
    """Test if the data set is here and has one, else everything. Raises DataError for a split that is not there."""
    prepared = _dataset_of(index, workspace)
    if prepared is None:
        if split not in (None, ALL):
            raise DataError(f"the data set of index {index.info.name} is not here", hint="leave the split out")
        rows = np.arange(len(index))
        return Subset(ALL, (), rows, tuple(Path(index.paths[row]).parent.name for row in rows.tolist()))
    table = prepared.images
    splits = tuple(dict.fromkeys(table["split"].astype(str)))
    wanted = split or ("test" if "test" in splits else ALL)
    if wanted not in (*splits, ALL):
        raise DataError(f"there is no split {wanted!r}", hint=f"choose {', '.join((*splits, ALL))}")
    tested = table if wanted == ALL else table[table["split"] == wanted]
    place = {image_id: row for row, image_id in enumerate(index.image_ids)}
    scene_of = dict(zip(tested["image_id"].astype(str), tested["scene"].fillna("").astype(str), strict=True))
    ids = sorted(image_id for image_id in scene_of if image_id in place)
    rows = np.array([place[image_id] for image_id in ids], dtype=np.int64)
    return Subset(wanted, splits, rows, tuple(scene_of[image_id] for image_id in ids))


def scored(index: GalleryIndex, subset: Subset) -> Scored:
    """Rank every caption's image and every image's captions. Raises DataError without captions, or with too many."""
    within = np.full(len(index), -1, dtype=np.int64)
    within[subset.rows] = np.arange(len(subset.rows))
    asked = within[index.caption_image] >= 0
    texts, owners = index.caption_text[asked], within[index.caption_image[asked]]
    if not len(texts):
        raise DataError(f"index {index.info.name} has no captions here", hint="index a data set with captions")
    if len(texts) * len(subset.rows) > _MOST_SCORES:
        raise DataError(f"{len(subset.rows):,} images x {len(texts):,} captions are too many", hint="choose a split")
    matrix = ScoreMatrix.from_features(index.image_features[subset.rows], index.text_features[texts])
    matches = Matches.own(owners, len(subset.rows))
    t2i = rank_queries(matrix.transposed(), matches.transposed())
    return Scored(index, texts, owners, rank_queries(matrix, matches), t2i)


def compared(subset: Subset, runs: Sequence[Scored]) -> dict[str, Any]:
    """Everything the page shows, for one index or two side by side. Raises MismatchError for other captions."""
    first = runs[0]
    for other in runs[1:]:
        if _captions(other) != _captions(first):
            raise MismatchError(
                f"indexes {first.index.info.name} and {other.index.info.name} have other captions",
                hint="index one data set with both models",
            )
    return {
        "split": subset.split,
        "splits": [*subset.splits, ALL] if subset.splits else [ALL],
        "images": len(subset.rows),
        "captions": len(first.texts),
        "runs": [_recalls(run) for run in runs],
        "scenes": _scenes(subset, runs),
        "worst": _worst(subset, runs),
    }


def comparable(index: GalleryIndex, other_manifest: str) -> bool:
    """Whether another index may be of the same data."""
    return bool(index.info.manifest_sha256) and index.info.manifest_sha256 == other_manifest


def _dataset_of(index: GalleryIndex, workspace: Workspace) -> PreparedDataset | None:
    if index.info.kind != "dataset":
        return None
    for place in (Path(index.info.source), workspace.root / "data" / index.info.dataset):
        try:
            prepared = open_prepared(place)
        except CmpaglError:
            continue
        if prepared.manifest.sha256 == index.info.manifest_sha256:
            return prepared
    return None


def _captions(run: Scored) -> list[str]:
    return [run.index.captions[text] for text in run.texts.tolist()]


def _recalls(run: Scored) -> dict[str, Any]:
    found = summarise(run.i2t, run.t2i)
    return {
        "index": run.index.info.name,
        "model": run.index.info.model,
        "i2t": asdict(found.i2t),
        "t2i": asdict(found.t2i),
        "mr": found.mr,
        "bounds": [found.mr_pessimistic, found.mr_optimistic],
    }


def _scenes(subset: Subset, runs: Sequence[Scored]) -> list[dict[str, Any]]:
    """The recalls of each scene class's own queries against all images, the worst class of the first run first."""
    classes = np.array(subset.scenes)
    rows = []
    for scene in sorted(set(subset.scenes) - {""}):
        inside = classes == scene
        directions = [(_part(run.i2t, inside), _part(run.t2i, inside[run.owners])) for run in runs]
        if any(i2t is None or t2i is None for i2t, t2i in directions):
            continue
        about = [{"i2t": asdict(i2t), "t2i": asdict(t2i), "mr": (i2t.mean + t2i.mean) / 2}
                 for i2t, t2i in directions if i2t is not None and t2i is not None]  # fmt: skip
        rows.append({"scene": scene, "images": int(inside.sum()), "runs": about})
    return sorted(rows, key=lambda row: row["runs"][0]["mr"])


def _part(ranking: Ranking, asked: NDArray[np.bool_]) -> Recalls | None:
    """Recalls of some of the queries; None where none of them has a match."""
    chosen = asked[ranking.query]
    if not chosen.any():
        return None
    return recalls(
        Ranking(
            ranking.query[chosen], ranking.better[chosen], ranking.tied[chosen], ranking.tied_matches[chosen],
            ranking.gallery,
        )
    )  # fmt: skip


def _worst(subset: Subset, runs: Sequence[Scored]) -> list[dict[str, Any]]:
    """The captions whose image comes last in the first run, with its rank and the images before it in each."""
    ranks = [_ranks(run) for run in runs]
    order = np.lexsort((np.arange(len(ranks[0])), -ranks[0]))
    chosen = [query for query in order.tolist() if ranks[0][query] > KS[0]][:WORST]
    first = runs[0]
    found = [_found(subset, run, chosen) for run in runs]
    return [
        {
            "caption": first.index.captions[int(first.texts[query])],
            "own": int(subset.rows[first.owners[query]]),
            "runs": [
                {"rank": float(rank[query]), "found": rows[place]} for rank, rows in zip(ranks, found, strict=True)
            ],
        }
        for place, query in enumerate(chosen)
    ]  # fmt: skip


def _ranks(run: Scored) -> NDArray[np.float64]:
    """Expected rank of each caption's image, [M], from 1."""
    free = run.t2i.tied - run.t2i.tied_matches
    ranks = np.empty(len(run.texts))
    ranks[run.t2i.query] = run.t2i.better + 1 + free / (run.t2i.tied_matches + 1)
    return ranks


def _found(subset: Subset, run: Scored, queries: Sequence[int]) -> list[list[int]]:
    """The first images of some captions, as rows of the index."""
    if not queries:
        return []
    where = np.zeros(len(run.index), dtype=bool)
    where[subset.rows] = True
    texts = np.asarray(run.index.text_features[run.texts[list(queries)]])
    rows = top_k(run.index.image_features, texts, _FOUND, run.index.tie_order, where=where).rows
    return [list(map(int, one)) for one in rows.tolist()]
