"""RetrievalReport: the recalls of every stage with bounds and intervals, and the result of each query."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from cmpagl_core.errors import DataError, MismatchError, check_format
from cmpagl_core.evaluation.intervals import PerImage
from cmpagl_core.evaluation.metrics import RankMetrics
from cmpagl_core.evaluation.protocol import Stamp
from cmpagl_core.evaluation.recall import Recalls
from cmpagl_core.files import atomic_file, read_json, sha256_file, write_json
from cmpagl_core.locks import hold

REPORT_FORMAT = 2
_LARGEST = 1e9  # rank or count of queries
_MAX_ARRAY_BYTES = 4 << 30
TIES_MATTER = 0.1  # percent between the bounds of mR or of any recall

_ARRAYS = "arrays_sha256"

Span = tuple[float, float]
Hits = NDArray[np.float64]


@dataclass(frozen=True)
class Spans:
    """Lower and upper end of each recall and of mR, in percent."""

    i2t: dict[str, Span]
    t2i: dict[str, Span]
    mr: Span

    def by_name(self) -> dict[str, Span]:
        """All seven by display name: "mR", "i2t R@1", ..."""
        sides = {"i2t": self.i2t, "t2i": self.t2i}
        named = {f"{side} R@{key[1:]}": span for side, spans in sides.items() for key, span in spans.items()}
        return {"mR": self.mr, **named}


@dataclass(frozen=True)
class ReportRow:
    """One stage: recalls and mR in percent, bounds over the orders of ties, 95 % intervals over query images."""

    stage: str
    i2t: Recalls
    t2i: Recalls
    mr: float
    bounds: Spans
    ci95: Spans
    i2t_ranks: RankMetrics
    t2i_ranks: RankMetrics
    queries: dict[str, int]  # how many, by direction

    @property
    def ties_matter(self) -> bool:
        """Whether the order of ties moves mR or any recall by more than TIES_MATTER."""
        return any(high - low > TIES_MATTER for low, high in self.bounds.by_name().values())

    @property
    def ties(self) -> str:
        """The bounds that ties leave, as text: mR's, or those of the recall that moves most; else empty."""
        if not self.ties_matter:
            return ""
        spans = self.bounds.by_name()
        width = {name: high - low for name, (low, high) in spans.items()}
        name = "mR" if width["mR"] > TIES_MATTER else max(width, key=lambda one: width[one])
        low, high = spans[name]
        return f"{name} {low:.2f} to {high:.2f}"


@dataclass(frozen=True, eq=False)
class StageHits:
    """Each query's result at one stage; NaN for a query without a match."""

    i2t_hits: Hits  # [N, 3] probability of a match among the first 1, 5, 10
    t2i_hits: Hits  # [M, 3]
    i2t_rank: Hits  # [N] expected rank of the first match, from 1
    t2i_rank: Hits  # [M]


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries, N images and M captions, and their results at every stage."""

    image_ids: tuple[str, ...]
    caption_image: NDArray[np.int64]  # [M]
    stages: dict[str, StageHits] = field(default_factory=dict)

    def per_image(self, stage: str) -> PerImage:
        """Per-image results for intervals and comparisons. Raises DataError listing the stages."""
        if stage not in self.stages:
            raise DataError(f"there is no stage {stage!r}", hint=f"there is {', '.join(self.stages)}")
        hits = self.stages[stage]
        return PerImage.of(self.image_ids, hits.i2t_hits, hits.t2i_hits, self.caption_image)


@dataclass(frozen=True, eq=False)
class RetrievalReport:
    """The result of an evaluation."""

    stamp: Stamp
    rows: tuple[ReportRow, ...]
    queries: Queries
    notes: tuple[str, ...] = ()

    def row(self, stage: str) -> ReportRow:
        """Raises DataError listing the stages."""
        for row in self.rows:
            if row.stage == stage:
                return row
        raise DataError(f"there is no stage {stage!r}", hint=f"there is {', '.join(row.stage for row in self.rows)}")

    @property
    def first(self) -> ReportRow:
        """The plain ranking, before any re-ranking: `cosine`, or `itm` of a model without pre-alignment."""
        return self.rows[0]

    @property
    def best(self) -> ReportRow:
        """The stage with the highest mR."""
        return max(self.rows, key=lambda row: row.mr)

    def to_json(self) -> dict[str, Any]:
        """{"stamp", "rows": [{"stage", "i2t", "t2i", "mr", "bounds", "ci95", ...}], "notes"}; recalls in percent."""
        return {
            "format_version": REPORT_FORMAT,
            "stamp": asdict(self.stamp),
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }


def report_path(run_root: Path, split: str, protocol: str, other_dataset: str = "") -> Path:
    """Path of an evaluation in a run: `evaluations/<split>-<protocol>.json`, with its arrays beside it.

    other_dataset: name of the data set if it is not the run's training data.
    """
    prefix = f"{other_dataset}-" if other_dataset else ""
    return run_root / "evaluations" / f"{prefix}{split}-{protocol}.json"


def save_report(report: RetrievalReport, path: Path, wait: Callable[[str], None] | None = None) -> None:
    """Write the queries' results beside `path` (.npz, no pickle), then `path` itself (.json), with their hash.

    wait: called with the other process while another evaluation writes there; None raises BusyError instead.
    """
    arrays: dict[str, NDArray[Any]] = {
        "image_ids": np.array(report.queries.image_ids, dtype=np.str_),
        "caption_image": report.queries.caption_image,
    }
    for stage, hits in report.queries.stages.items():
        arrays |= {f"{stage}.{name}": values for name, values in _arrays(hits).items()}
    stored = path.with_suffix(".npz")
    with hold(path, wait):
        with atomic_file(stored, "wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        write_json(path, {**report.to_json(), _ARRAYS: sha256_file(stored)})


def load_report(path: Path) -> RetrievalReport:
    """Read a saved evaluation.

    Raises DataError if it is missing, broken or of another version, MismatchError if its two files do not belong
    together.
    """
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    check_format(path, version, REPORT_FORMAT, "evaluate again")
    try:
        stamp = TypeAdapter(Stamp).validate_python(content.get("stamp"))
        rows = TypeAdapter(tuple[ReportRow, ...]).validate_python(content.get("rows"))
        notes = TypeAdapter(tuple[str, ...]).validate_python(content.get("notes", ()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}", hint="evaluate again") from error
    if not rows:
        raise DataError(f"{path} has no rows", hint="evaluate again")
    for row in rows:
        absurd = next((number for number in _numbers(asdict(row)) if not 0 <= number <= _LARGEST), None)
        if absurd is not None:
            raise DataError(
                f"{path}: {row.stage[:60]} has the impossible value {str(absurd)[:20]}", hint="evaluate again"
            )
    stored = path.with_suffix(".npz")
    if not stored.is_file():
        raise DataError(f"{stored} is missing", hint="evaluate again")
    if content.get(_ARRAYS) != sha256_file(stored):
        raise MismatchError(
            f"{path} and {stored.name} beside it belong to two different evaluations", hint="evaluate again"
        )
    return RetrievalReport(stamp, rows, _load_queries(stored, [row.stage for row in rows]), notes)


def _load_queries(path: Path, stages: list[str]) -> Queries:
    try:
        # opened here, since numpy does not close a broken archive
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            _check_size(file)
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error})", hint="evaluate again") from error
    try:
        ids, owners = arrays["image_ids"], arrays["caption_image"].astype(np.int64)
        images, captions = len(ids), len(owners)
        hits = {
            stage: StageHits(
                _shaped(arrays[f"{stage}.i2t_hits"], (images, 3)),
                _shaped(arrays[f"{stage}.t2i_hits"], (captions, 3)),
                _shaped(arrays[f"{stage}.i2t_rank"], (images,)),
                _shaped(arrays[f"{stage}.t2i_rank"], (captions,)),
            )
            for stage in stages
        }
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path} does not belong to the evaluation beside it ({error})", hint="evaluate again"
        ) from error
    if not images:
        raise DataError(f"{path} has no images", hint="evaluate again")
    if captions and not 0 <= owners.min() <= owners.max() < images:
        raise DataError(f"{path}: caption_image refers to images that do not exist", hint="evaluate again")
    return Queries(tuple(str(image) for image in ids), owners, hits)


def _shaped(values: NDArray[Any], shape: tuple[int, ...]) -> Hits:
    if values.shape != shape or values.dtype.kind not in "fiu":
        raise ValueError(f"{values.dtype} of shape {values.shape} instead of numbers of shape {shape}")
    if bool(((values < 0) | (values > _LARGEST)).any()):  # false for NaN, a query without a match
        raise ValueError("a result is negative or too large")
    return values.astype(np.float64)


def _check_size(file: NpzFile) -> None:
    """A few bytes can unpack to any size."""
    size = 0 if file.zip is None else sum(info.file_size for info in file.zip.infolist())
    if size > _MAX_ARRAY_BYTES:
        raise ValueError(f"it unpacks to {size:,} bytes")


def _numbers(tree: Any) -> Iterator[int | float]:
    """Every number in nested dictionaries and tuples."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple):
        for child in tree:
            yield from _numbers(child)
    elif isinstance(tree, int | float):
        yield tree


def _arrays(hits: StageHits) -> Mapping[str, Hits]:
    return {name: getattr(hits, name) for name in ("i2t_hits", "t2i_hits", "i2t_rank", "t2i_rank")}
