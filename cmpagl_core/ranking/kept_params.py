"""The re-ranking parameters chosen for a run: `rerank.json` in its folder (ours).

The file records weights and selection split by hash; parameters chosen for other weights or on another split than the
run's selection split are never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cmpagl_core.errors import DataError, check_format
from cmpagl_core.files import canonical_json, read_json, sha256_text, write_json
from cmpagl_core.locks import hold, sweep_lock
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.rerank import ChosenParams, RerankParams
from cmpagl_core.runs import Run, Seen

RERANK_FILE = "rerank.json"
RERANK_FORMAT = 1


@dataclass(frozen=True)
class Chooser:
    """The weights and the split of a choice, as hex digests of SHA-256."""

    weights_sha256: str
    split_sha256: str
    images_sha256: str  # of the split's images

    @classmethod
    def of(cls, weights_sha256: str, selection_sha256: str, seen: Seen) -> Chooser:
        """A run and its selection split."""
        return cls(weights_sha256, selection_sha256, sha256_text(canonical_json(sorted(seen.selection_images))))

    @classmethod
    def of_run(cls, run: Run) -> Chooser:
        """A finished run with its recorded selection split."""
        return cls.of(run.info.weights_sha256, run.info.selection_sha256, run.seen)


@dataclass(frozen=True)
class _Kept:
    """The content of rerank.json."""

    chooser: Chooser
    by_scores: dict[str, RerankParams]
    format_version: int = RERANK_FORMAT


def write_params(root: Path, chooser: Chooser, by_scores: Mapping[str, RerankParams]) -> None:
    """Save a choice in a run's folder, replacing earlier ones. Raises CmpaglError if writing fails."""
    write_json(root / RERANK_FILE, asdict(_Kept(chooser, dict(by_scores))))


def add_params(run: Run, before: ChosenParams, after: ChosenParams, progress: Progress) -> None:
    """Save what was chosen from `before` to `after`, merged with what another process may have saved meanwhile.

    Raises CmpaglError if writing fails.
    """
    with hold(run.root / RERANK_FILE, progress.say):
        both = read_params(run).taking_over(before, after)
        write_params(run.root, Chooser.of_run(run), both.by_scores)


def read_params(run: Run, progress: Progress | None = None) -> ChosenParams:
    """The parameters chosen for a run; empty if there are none, or (with a message) if they do not apply to it.

    Raises DataError for a broken file.
    """
    path, chooser = run.root / RERANK_FILE, Chooser.of_run(run)
    nothing = ChosenParams(split_sha256=chooser.split_sha256)
    if not path.is_file():
        return nothing
    sweep_lock(path)
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    hint = "delete it; `cmpagl tune smr` writes a new one"
    check_format(path, version, RERANK_FORMAT, hint)
    try:
        kept = TypeAdapter(_Kept).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {key}: {first['msg']}", hint=hint) from error
    if kept.chooser != chooser:
        if progress is not None:
            progress.say(f"{path} is not used: it was chosen for other weights or on another split than the run's own")
        return nothing
    return ChosenParams(kept.by_scores, chooser.split_sha256)
