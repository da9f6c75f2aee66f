"""From pictures to a GalleryIndex: encoded once, only what is new or changed, and kept when interrupted (ours)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.datasets.views import Views, view_count
from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.cached import cache_of_run, cached_batches
from cmpagl_core.encoders.decode import Broken
from cmpagl_core.encoders.encode import (
    EncodedBatch,
    encode_captions,
    encoded_batches,
    forward_pass,
    preprocessing,
)
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.encoders.stem_cache import CachedMaps, StemCache
from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.encoders.text_tower import TowerInfo, open_text_tower, save_text_tower
from cmpagl_core.errors import CmpaglError, DataError, InterruptedByUserError, UsageError
from cmpagl_core.imagery.pictures import list_pictures
from cmpagl_core.locks import hold
from cmpagl_core.progress import Progress
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import LoadedModel, Run
from cmpagl_core.search.index import INFO_FILE, TOWER_FILE, GalleryIndex, IndexInfo, open_index, save_index
from cmpagl_core.search.known import KnownPictures, Picture, PicturePart, with_content

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
    skipped: tuple[Broken, ...]


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
    choices = {
        choice: replace(run, recipe=override_recipe(run.recipe, [f"evaluate.views={choice}"]))
        for choice in get_args(Views)
    }
    if views is not None:
        return choices[views]
    try:
        before = open_index(root).info.preprocessing
    except CmpaglError:
        return run  # there is none yet, or none that can be read
    return next((seen for seen in choices.values() if preprocessing(seen.recipe) == before), run)


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
    said. When interrupted, what is encoded is kept for the next call. cache_root: a workspace's cache, where trainings
    may have left maps of the run's stem; pictures with such maps are not encoded by the stem again. wait: until another
    process has written this index, and then look whether anything is left to do.
    Raises DataError when no picture can be read, UsageError when the run's features rank nothing or `root` holds the
    index of another source, BusyError when another process writes it, InterruptedByUserError.
    """
    if not (run.recipe.losses.uses_itc or run.recipe.losses.uses_triplet):
        raise UsageError(
            f"run {run.root.name} was trained without pre-alignment, so its features cannot be searched",
            hint="name another run with --run",
        )
    with hold(root, progress.say if wait else None, instead="choose another --name"):
        return _Build(run, source, root, progress, device, cache_root).make()


class _Build:
    """One making of an index: what is known, what is new, and the model, loaded when it is first needed."""

    def __init__(
        self,
        run: Run,
        source: GallerySource,
        root: Path,
        progress: Progress,
        device: torch.device | None,
        cache_root: Path | None,
    ) -> None:
        self._run, self._source, self._root, self._progress, self._device = run, source, root, progress, device
        self._cache_root = cache_root
        self._loaded: LoadedModel | None = None
        recipe = run.recipe
        self._info = IndexInfo(
            name=root.name,
            kind=source.kind,
            source=source.source,
            dataset=source.dataset,
            manifest_sha256=source.manifest_sha256,
            model=run.root.name,
            run=os.path.abspath(run.root),  # noqa: PTH100 - resolve() would follow links
            model_sha256=run.info.weights_sha256,
            preprocessing=preprocessing(recipe),
            precision=usable_precision(device or torch.device("cpu"), recipe.train.precision),
        )

    def make(self) -> BuiltIndex:
        known = KnownPictures.read(self._root, self._info)
        if known.why_anew:
            self._progress.say(f"index {self._root.name} is made anew: {known.why_anew}")
        pictures, skipped = self._look(known)
        encoded, broken = self._encode_new(known, [picture for picture in pictures if picture.known_row is None])
        skipped += broken
        left_out = {item.path for item in broken}
        kept = [picture for picture in pictures if picture.path not in left_out]
        self._say(len(kept), len(kept) - encoded, skipped)
        index = self._assemble(known, kept)
        self._write_tower()
        save_index(index, [{"path": str(item.path), "why": item.why} for item in skipped])
        known.forget_parts()
        return BuiltIndex(index, encoded, tuple(skipped))

    def _look(self, known: KnownPictures) -> tuple[list[Picture], list[Broken]]:
        """Which pictures are there, and which of them are known already."""
        pictures: list[Picture] = []
        missing: list[Broken] = []
        with self._progress.task("look at pictures", len(self._source.entries), "img") as advance:
            for entry in self._source.entries:
                try:
                    pictures.append(known.look_at(entry.path))
                except OSError as error:
                    missing.append(Broken(entry.path, f"{entry.path} cannot be read ({error.strerror})"))
                advance(1)
        return pictures, missing

    def _encode_new(self, known: KnownPictures, new: Sequence[Picture]) -> tuple[int, list[Broken]]:
        """Encode pictures that are not known, kept in parts as they come; returns how many, and the broken ones."""
        if not new:
            return 0, []
        encoded = 0
        broken: list[Broken] = []
        new, batches = self._batches(new)
        bar = self._progress.task("encode pictures", len(new), "img")
        with self._resumable(known, len(new)), forward_pass(self._model()), bar as advance:
            part = PicturePart()
            try:
                for batch in batches:
                    part.add([new[row] for row in batch.rows], batch.features)
                    encoded += len(batch.rows)
                    broken += batch.broken
                    if part.is_full:
                        full, part = part, PicturePart()
                        known.keep(full)
                    advance(len(batch.rows) + len(batch.broken))
            finally:
                known.keep(part)
        return encoded, broken

    def _batches(self, new: Sequence[Picture]) -> tuple[Sequence[Picture], Iterable[EncodedBatch]]:
        """New pictures, those with cached maps first, and their features batch by batch in that order."""
        cache = self._stem_cache()
        if cache is None:
            return new, encoded_batches(self._model(), [picture.path for picture in new])
        hashed = [_hashed(picture) for picture in new]
        cached = [picture for picture in hashed if picture.sha256 in cache.rows]
        others = [picture for picture in hashed if picture.sha256 not in cache.rows]
        if cached:
            self._progress.say(f"{len(cached):,} of {len(new):,} pictures have maps that a training cached")
        source = CachedMaps(cache, tuple(picture.sha256 for picture in cached))
        views = view_count(self._run.recipe.evaluate.views)
        encoded = encoded_batches(self._model(), [picture.path for picture in others])
        later = (replace(batch, rows=[len(cached) + row for row in batch.rows]) for batch in encoded)
        return [*cached, *others], chain(cached_batches(self._model(), source, views), later)

    def _stem_cache(self) -> StemCache | None:
        if self._cache_root is None:
            return None
        try:
            return cache_of_run(self._run, self._model(), self._cache_root)
        except DataError as error:
            self._progress.say(f"cached maps are not used: {error}")
            return None

    @contextmanager
    def _resumable(self, known: KnownPictures, count: int) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt as error:
            raise InterruptedByUserError(
                f"interrupted while {count:,} pictures were being encoded for index {self._root.name}",
                hint=f"run the same command again: the {known.kept_now:,} that are done are kept",
            ) from error

    def _assemble(self, known: KnownPictures, pictures: Sequence[Picture]) -> GalleryIndex:
        if not pictures:
            raise DataError(
                f"none of the {len(self._source.entries):,} pictures of {self._source.source} can be read",
                hint="nothing was indexed; the reasons are listed above",
            )
        captions_of = {entry.path: entry.captions for entry in self._source.entries}
        id_of = {entry.path: entry.image_id for entry in self._source.entries}
        features, fingerprints = known.collect(pictures)
        linked = [(row, text) for row, picture in enumerate(pictures) for text in captions_of[picture.path]]
        captions, caption_text = unique_texts([text for _, text in linked])
        return GalleryIndex(
            root=self._root,
            image_features=features,
            image_ids=TextTable.of(id_of[picture.path] for picture in pictures),
            paths=TextTable.of(str(picture.path) for picture in pictures),
            captions=TextTable.of(captions),
            text_features=self._caption_features(known, captions, features.shape[1]),
            caption_image=np.array([row for row, _ in linked], dtype=np.int64),
            caption_text=caption_text,
            tie_order=None,
            fingerprints=fingerprints,
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
            features[new] = encode_captions(self._model(), [captions[row] for row in new], self._progress)
        return features

    def _write_tower(self) -> None:
        path = self._root / TOWER_FILE
        try:
            if open_text_tower(path).info.model_sha256 == self._info.model_sha256:
                return
        except CmpaglError:
            pass  # there is none yet, or none that can be read
        write_text_tower(path, self._model())

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = self._run.load(self._device)
        return self._loaded

    def _say(self, count: int, unchanged: int, skipped: Sequence[Broken]) -> None:
        if unchanged:
            self._progress.say(f"{unchanged:,} of {count:,} pictures are unchanged and keep their features")
        for item in skipped[:_SAID_AT_MOST]:
            self._progress.say(f"left out: {item.why}")
        more = len(skipped) - _SAID_AT_MOST
        if more > 0:
            self._progress.say(f"left out: {more:,} more, listed in {self._root / INFO_FILE}")


def _hashed(picture: Picture) -> Picture:
    """With its content's hash, or as it is where it cannot be read: whoever decodes it says why."""
    try:
        return with_content(picture)
    except OSError:
        return picture


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
