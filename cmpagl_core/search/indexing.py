"""From pictures to a GalleryIndex: encoded once, only what is new or changed, and kept when interrupted (ours)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.datasets.views import Views
from cmpagl_core.encoders.cmpagl import CmpaglEncoder, gallery_preprocessing
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.encoders.text_tower import TowerInfo, open_text_tower, save_text_tower
from cmpagl_core.errors import CmpaglError, DataError, InterruptedByUserError, UsageError
from cmpagl_core.imagery.pictures import list_pictures, reader_version
from cmpagl_core.imagery.stamps import Broken, cannot_read
from cmpagl_core.locks import hold
from cmpagl_core.progress import Progress
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import LoadedModel, Run
from cmpagl_core.search.index import FileStamps, GalleryIndex, IndexInfo, open_index, save_index
from cmpagl_core.search.known import Known, KnownPictures, PicturePart
from cmpagl_core.search.marker import INFO_FILE, read_marker

_SAID_AT_MOST = 20


@dataclass(frozen=True)
class Entry:
    """One picture that is to be found: its id, its file, its captions (none for a plain folder)."""

    image_id: str
    path: Path
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class GallerySource:
    """The pictures of a gallery, sorted by image id, and where they come from."""

    kind: Literal["folder", "dataset"]
    source: str
    dataset: str
    manifest_sha256: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class BuiltIndex:
    """A new index, how many of its pictures were encoded now, and those that were left out."""

    index: GalleryIndex
    encoded: int
    left_out: tuple[Broken, ...]


def folder_source(folder: Path) -> GallerySource:
    """Every picture under a folder; its id is its path inside it. Raises DataError when there is none."""
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
    entries = [Entry(path.relative_to(root).as_posix(), path) for path in list_pictures(root)]
    return GallerySource("folder", str(root), "", "", tuple(sorted(entries, key=lambda entry: entry.image_id)))


def dataset_source(prepared: PreparedDataset) -> GallerySource:
    """Every picture of a prepared data set, of all its splits, with its captions."""
    split = prepared.split("all")
    entries = [
        Entry(
            image_id,
            Path(os.path.abspath(path)),  # noqa: PTH100 - resolve() would follow links
            tuple(split.captions[caption] for caption in split.captions_of(row)),
        )
        for row, (image_id, path) in enumerate(zip(split.image_ids, split.paths, strict=True))
    ]
    root = os.path.abspath(prepared.root)  # noqa: PTH100 - as above
    ordered = tuple(sorted(entries, key=lambda entry: entry.image_id))
    return GallerySource("dataset", root, prepared.name, prepared.manifest.sha256, ordered)


def seen_in(run: Run, root: Path, views: Views | None) -> Run:
    """The run, to see pictures in these views; None: as the index under `root` did, or else as the recipe says (ours).

    So an index that was made from one view of each picture is brought up to date from one view.
    """
    if views is not None:
        return _seen_in(run, views)
    try:
        return seen_as(run, open_index(root).info.preprocessing)
    except CmpaglError:
        return run  # there is none yet, or none that can be read


def seen_as(run: Run, before: str) -> Run:
    """The run, to see pictures as an index did that keeps these words of it; as it is where no views fit them."""
    choices = (_seen_in(run, choice) for choice in get_args(Views))
    return next((seen for seen in choices if gallery_preprocessing(seen.recipe) == before), run)


def _seen_in(run: Run, views: Views) -> Run:
    return replace(run, recipe=override_recipe(run.recipe, [f"evaluate.views={views}"]))


def build_index(
    run: Run,
    source: GallerySource,
    root: Path,
    progress: Progress,
    device: torch.device | None = None,
    cache_root: Path | None = None,
    wait: bool = False,
) -> BuiltIndex:
    """Encode a gallery with a run's model into the folder `root`, or bring the index that is there up to date.

    Pictures that are unchanged since (size and time, else content) keep their features. Broken ones are left out and
    said, and not tried again while they stay as they are. When interrupted, what is encoded is kept for the next
    call. cache_root: a workspace's cache, where trainings may have left maps of the run's stem; pictures with such
    maps are not encoded by the stem again.
    wait: until another process has written this index, and then look whether anything is left to do.
    Raises DataError when no picture can be read, UsageError when the run's features rank nothing or `root` holds the
    index of another source, BusyError when another process writes it, InterruptedByUserError.
    """
    if not (run.recipe.losses.uses_itc or run.recipe.losses.uses_triplet):
        raise UsageError(
            f"run {run.root.name} was trained without pre-alignment, so its features cannot be searched",
            hint="name another run with --run",
        )
    encoder = CmpaglEncoder(run, progress, device, cache_root)
    with hold(root, progress.say if wait else None, instead="choose another --name"):
        return _Build(encoder, source, root, progress).make()


class _Build:
    """One making of an index: what is known, what is new, and the encoder."""

    def __init__(self, encoder: CmpaglEncoder, source: GallerySource, root: Path, progress: Progress) -> None:
        self._encoder, self._source, self._root, self._progress = encoder, source, root, progress
        self._reader = reader_version()
        run = encoder.run.root
        self._info = IndexInfo(
            name=root.name,
            kind=source.kind,
            source=source.source,
            dataset=source.dataset,
            manifest_sha256=source.manifest_sha256,
            model=run.name,
            run=os.path.abspath(run),  # noqa: PTH100 - resolve() would follow links
            model_sha256=encoder.model_sha256,
            preprocessing=encoder.preprocessing,
            precision=encoder.precision,
        )

    def make(self) -> BuiltIndex:
        known = KnownPictures.read(self._root, self._info, self._reader)
        if known.why_anew:
            self._progress.say(f"index {self._root.name} is made anew: {known.why_anew}")
        found, new, left_out = self._look(known)
        encoded, broken = self._encode_new(known, new)
        left_out += broken
        self._say(len(found) + len(encoded), len(found), left_out)
        index = self._assemble(known, {**found, **encoded})
        write_tower = None if self._has_tower() else lambda path: write_text_tower(path, self._encoder.loaded)
        index = save_index(index, self._reader, left_out, write_tower)
        known.forget_parts()
        return BuiltIndex(index, len(encoded), tuple(left_out))

    def _look(self, known: KnownPictures) -> tuple[dict[Path, Known], list[Path], list[Broken]]:
        """Which pictures are known already, which are new, and which cannot be read."""
        found: dict[Path, Known] = {}
        new: list[Path] = []
        left_out: list[Broken] = []
        with self._progress.task("look at pictures", len(self._source.entries), "img") as advance:
            for entry in self._source.entries:
                seen = _look_up(known, entry.path)
                if isinstance(seen, Known):
                    found[entry.path] = seen
                elif isinstance(seen, Broken):
                    left_out.append(seen)
                else:
                    new.append(entry.path)
                advance(1)
        return found, new, left_out

    def _encode_new(self, known: KnownPictures, new: Sequence[Path]) -> tuple[dict[Path, Known], list[Broken]]:
        """Encode pictures that are not known, kept in parts as they come; returns them, and the broken ones."""
        encoded: list[Path] = []
        broken: list[Broken] = []
        if not new:
            return {}, broken
        bar = self._progress.task("encode pictures", len(new), "img")
        with self._resumable(known, len(new)), closing(self._encoder.encode_images(new)) as batches, bar as advance:
            part = PicturePart()
            try:
                for batch in batches:
                    paths = [new[row] for row in batch.rows]
                    part.add(dict(zip(paths, batch.stamps, strict=True)), batch.features)
                    encoded += paths
                    broken += batch.broken
                    if part.is_full:
                        full, part = part, PicturePart()
                        known.keep(full)
                    advance(len(batch.rows) + len(batch.broken))
            finally:
                known.keep(part)
        return {path: known.row_of(path) for path in encoded}, broken

    @contextmanager
    def _resumable(self, known: KnownPictures, count: int) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt as error:
            raise InterruptedByUserError(
                f"interrupted while {count:,} pictures were being encoded for index {self._root.name}",
                hint=f"run the same command again: the {known.kept_now:,} that are done are kept",
            ) from error

    def _assemble(self, known: KnownPictures, pictures: Mapping[Path, Known]) -> GalleryIndex:
        """The index of the readable pictures, in the source's order."""
        entries = [entry for entry in self._source.entries if entry.path in pictures]
        if not entries:
            raise DataError(
                f"none of the {len(self._source.entries):,} pictures of {self._source.source} can be read",
                hint="nothing was indexed; the reasons are listed above",
            )
        features = known.collect([pictures[entry.path].row for entry in entries])
        linked = [(row, text) for row, entry in enumerate(entries) for text in entry.captions]
        captions, caption_text = unique_texts([text for _, text in linked])
        return GalleryIndex(
            root=self._root,
            image_features=features,
            image_ids=TextTable.of(entry.image_id for entry in entries),
            paths=TextTable.of(str(entry.path) for entry in entries),
            captions=TextTable.of(captions),
            text_features=self._caption_features(known, captions, features.shape[1]),
            caption_image=np.array([row for row, _ in linked], dtype=np.int64),
            caption_text=caption_text,
            tie_order=None,
            stamps=FileStamps.of([pictures[entry.path].stamp for entry in entries]),
            info=self._info,
        )

    def _caption_features(self, known: KnownPictures, captions: list[str], dim: int) -> NDArray[np.float32]:
        features = np.empty((len(captions), dim), dtype=np.float32)
        new: list[int] = []
        for row, caption in enumerate(captions):
            stored = known.caption(caption)
            if stored is None:
                new.append(row)
            else:
                features[row] = stored
        if new:
            features[new] = self._encoder.encode_texts([captions[row] for row in new])
        return features

    def _has_tower(self) -> bool:
        """Whether the index that is there has the text half of this model."""
        try:
            path = read_marker(self._root).path_of("text_tower")
            return path is not None and open_text_tower(path).info.model_sha256 == self._info.model_sha256
        except CmpaglError:
            return False  # there is none yet, or none that can be read

    def _say(self, count: int, unchanged: int, left_out: Sequence[Broken]) -> None:
        if unchanged:
            self._progress.say(f"{unchanged:,} of {count:,} pictures are unchanged and keep their features")
        for item in left_out[:_SAID_AT_MOST]:
            self._progress.say(f"left out: {item.why}")
        more = len(left_out) - _SAID_AT_MOST
        if more > 0:
            self._progress.say(f"left out: {more:,} more, listed in {self._root / INFO_FILE}")


def _look_up(known: KnownPictures, path: Path) -> Known | Broken | None:
    try:
        return known.look_up(path)
    except OSError as error:
        return Broken(path, str(cannot_read(path, error)))
    except DataError as error:
        return Broken(path, str(error))


def write_text_tower(path: Path, loaded: LoadedModel) -> None:
    """Write the text half of a model as a tower."""
    encoder = loaded.model.text_encoder
    tensors = dict(encoder.state_dict())
    tensors |= {f"text_projection.{name}": tensor for name, tensor in loaded.model.text_projection.state_dict().items()}
    info = TowerInfo(
        model_sha256=loaded.sha256,
        pooling=encoder.pooling,
        layers=len(encoder.layers),
        num_heads=encoder.shape.num_heads,
        layer_norm_eps=encoder.shape.layer_norm_eps,
        max_tokens=loaded.tokenizer.max_tokens,
        probes=loaded.model.probes,
    )
    weights = {
        name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items() if tensor.is_floating_point()
    }
    save_text_tower(path, weights, loaded.tokenizer.to_json(), info)
