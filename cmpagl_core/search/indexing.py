"""From images to a GalleryIndex: encodes only what is new or changed, and keeps it when interrupted (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.encoder import Encoder, EncodesImages, Features, HasTextTower
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.encoders.prompts import encode_prompted, written_templates
from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.encoders.text_tower import open_text_tower
from cmpagl_core.errors import CmpaglError, DataError, InterruptedByUserError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import PLAIN_SUFFIXES, reader_version
from cmpagl_core.imagery.pieces import pieces_of, scene_of, windows_of
from cmpagl_core.imagery.stamps import Broken, cannot_read
from cmpagl_core.imagery.tiles import DEFAULT_TILE_PX, SCENE_PIXELS, WHOLE
from cmpagl_core.locks import hold
from cmpagl_core.progress import Progress
from cmpagl_core.search.feature_cache import CachedFeature, FeatureCache, ImagePart, has_parts
from cmpagl_core.search.gallery_source import Entry, GallerySource
from cmpagl_core.search.index import GalleryIndex, IndexInfo, open_index, save_index
from cmpagl_core.search.marker import INFO_FILE, IndexFile, read_marker, renew_marker, write_named
from cmpagl_core.search.scenes import SceneTable
from cmpagl_core.search.store_files import EXACT, StoreChoice, make_store
from cmpagl_core.search.stored import FileStamps, stored_windows

_SAID_AT_MOST = 20


@dataclass(frozen=True)
class BuiltIndex:
    """A new index, the number of images encoded now, and those that were left out."""

    index: GalleryIndex
    encoded: int
    left_out: tuple[Broken, ...]
    scenes: int = 0  # files that were cut into tiles
    empty: int = 0  # tiles in which there is nothing to see
    recall: float | None = None  # of the exact 10 best, 0 to 1, by an approximate store


def build_index(
    encoder: Encoder,
    source: GallerySource,
    root: Path,
    progress: Progress,
    wait: bool = False,
    store: StoreChoice = EXACT,
    known: Sequence[GalleryIndex] = (),
    images_by: EncodesImages | None = None,
) -> BuiltIndex:
    """Encode a gallery into the folder `root`, or bring the index that is there up to date.

    Images that are unchanged since (size and time, else content) keep their features. Broken ones are left out and
    said, and not tried again while they stay as they are. When interrupted, what is encoded is kept for the next
    call. wait: until another process has written this index, and then look whether anything is left to do. known:
    other indexes with the same kind of features, which are taken over. images_by: encodes the images in place of the
    encoder.
    Raises DataError when no image can be read, UsageError when `root` holds the index of another source, BusyError
    when another process writes it, InterruptedByUserError.
    """
    with hold(root, progress.say if wait else None, instead="choose another --name"):
        return _Build(encoder, source, root, progress, store, images_by or encoder).make(known)


class _Build:
    """One build of an index: cached images, new images, and the encoder."""

    def __init__(
        self,
        encoder: Encoder,
        source: GallerySource,
        root: Path,
        progress: Progress,
        store: StoreChoice,
        images_by: EncodesImages,
    ) -> None:
        self._images_by = images_by
        self._encoder, self._source, self._root, self._progress = encoder, source, root, progress
        self._store = store
        self._entries: list[Entry] = []  # the source's, scenes cut into tiles
        self._scenes = self._tiles = 0
        self._reader = f"{reader_version()}, {source.reading.words}"
        self._info = IndexInfo(
            name=root.name,
            kind=source.kind,
            source=source.source,
            dataset=source.dataset,
            manifest_sha256=source.manifest_sha256,
            model=encoder.name,
            model_kind=encoder.origin.kind,
            model_source=encoder.origin.source,
            **asdict(encoder.fingerprint),
            bands=source.reading.bands,
            stretch=source.reading.stretch,
            tiling=str(source.tiling),
            templates=written_templates(source.templates),
            store=str(store),
        )

    def make(self, known: Sequence[GalleryIndex]) -> BuiltIndex:
        unchanged = self._unchanged()
        if unchanged is not None:
            self._say(len(unchanged), len(unchanged), ())
            return BuiltIndex(unchanged, 0, ())
        cache = FeatureCache.read(self._root, self._info, self._reader)
        for index in known:
            cache.take_other(index)
        if cache.rebuild_reason:
            self._progress.say(f"index {self._root.name} is rebuilt: {cache.rebuild_reason}")
        found, new, unseen = self._look(cache)
        encoded, broken = self._encode_new(cache, new)
        unseen += broken
        left_out, empty = [one for one in unseen if not one.empty], [one for one in unseen if one.empty]
        self._say(len(found) + len(encoded), len(found), left_out)
        images = {**found, **encoded}
        entries = sorted((entry for entry in self._entries if entry.image in images), key=_image_id)
        index = self._assemble(cache, entries, images, empty)
        rows = self._rows_of_old(cache, entries, images)
        stored = make_store(self._store, index, cache.index, rows, self._progress)
        index = save_index(index, self._reader, left_out, {**self._tower(), **stored.files})
        cache.forget_parts()
        return BuiltIndex(index, len(encoded), tuple(left_out), self._scenes, len(empty), stored.recall)

    def _unchanged(self) -> GalleryIndex | None:
        """The index that is there, where all that it would be made of is as it was, by sizes and times of files."""
        files = self._source.files
        if files is None or files.left_out:
            return None
        try:
            marker, index = read_marker(self._root), open_index(self._root)
        except CmpaglError:
            return None
        stamps = index.stamps
        if (
            index.info != self._info
            or index.windows is not None
            or index.scenes is not None
            or stamps is None
            or len(index) != len(files.names)
            or marker.content.get("reader") != self._reader
            or marker.content.get("left_out") != []
            or has_parts(self._root)
        ):
            return None
        same_names = index.image_ids.data.tobytes() == "".join(files.names).encode("utf-8")
        same_states = np.array_equal(stamps.sizes, files.sizes) and np.array_equal(stamps.mtimes_ns, files.mtimes_ns)
        if not same_names or not same_states:
            return None
        renew_marker(marker)
        return index

    def _look(self, cache: FeatureCache) -> tuple[dict[ImageRef, CachedFeature], list[ImageRef], list[Broken]]:
        """Which images are known already, which are new, and which cannot be read or show nothing."""
        found: dict[ImageRef, CachedFeature] = {}
        new: list[ImageRef] = []
        unseen: list[Broken] = list(self._source.left_out)
        with self._progress.task("look at images", len(self._source.entries), "img") as advance:
            for entry in self._source.entries:
                for image in self._pieces(cache, entry.image, unseen):
                    self._entries.append(replace(entry, image=image))
                    seen = _lookup(cache, image)
                    if isinstance(seen, CachedFeature):
                        found[image] = seen
                    elif isinstance(seen, Broken):
                        unseen.append(seen)
                    else:
                        new.append(image)
                advance(1)
        self._say_tiles()
        return found, new, unseen

    def _pieces(self, cache: FeatureCache, image: ImageRef, unseen: list[Broken]) -> list[ImageRef]:
        """A file, or its tiles, where it is a scene; one that cannot be cut as asked goes to those that are unseen."""
        tiling = self._source.tiling
        plain = tiling == WHOLE and image.path.suffix.lower() in PLAIN_SUFFIXES
        if self._source.is_cut or image.window is not None or plain:
            return [image]
        try:
            scene = cache.scene(image.path)
            if scene is None and cache.has_whole(image) and cache.tiling == str(tiling):
                return [image]
            scene = scene or scene_of(image)
        except (DataError, OSError):
            return [image]  # whoever reads it says why it cannot be read
        try:
            windows = windows_of(image, scene, tiling)
        except DataError as error:
            unseen.append(Broken(image, str(error)))
            return []
        try:
            pieces = pieces_of(image, scene, windows)
        except DataError:
            return [image]  # as above
        self._scenes += bool(windows)
        self._tiles += len(windows)
        return pieces

    def _encode_new(
        self, cache: FeatureCache, new: Sequence[ImageRef]
    ) -> tuple[dict[ImageRef, CachedFeature], list[Broken]]:
        """Encode images that are not cache, kept in parts as they come; returns them, and the broken ones."""
        encoded: list[ImageRef] = []
        broken: list[Broken] = []
        if not new:
            return {}, broken
        bar = self._progress.task("encode images", len(new), "img")
        with self._resumable(cache, len(new)), closing(self._images_by.encode_images(new)) as batches, bar as advance:
            part = ImagePart()
            try:
                for batch in batches:
                    images = [new[row] for row in batch.rows]
                    part.add(images, batch.stamps, batch.features)
                    encoded += images
                    broken += batch.broken
                    if part.is_full:
                        full, part = part, ImagePart()
                        cache.keep(full)
                    advance(len(batch.rows) + len(batch.broken))
            finally:
                cache.keep(part)
        return {image: cache.just_kept(image) for image in encoded}, broken

    @contextmanager
    def _resumable(self, cache: FeatureCache, count: int) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt as error:
            raise InterruptedByUserError(
                f"interrupted while encoding {count:,} images for index {self._root.name}",
                hint=f"run the same command again: the {cache.kept_now:,} finished ones are kept",
            ) from error

    def _assemble(
        self,
        cache: FeatureCache,
        entries: Sequence[Entry],
        images: Mapping[ImageRef, CachedFeature],
        empty: Sequence[Broken],
    ) -> GalleryIndex:
        """The index of the readable images, in the order of their ids."""
        if not entries:
            raise DataError(
                f"none of the {len(self._source.entries):,} images of {self._source.source} can be read",
                hint="nothing was indexed; the reasons are listed above",
            )
        linked = [(row, text) for row, entry in enumerate(entries) for text in entry.captions]
        captions, caption_text = unique_texts([text for _, text in linked])
        stamps = [images[entry.image].stamp for entry in entries]
        nothing = [(one.image, one.stamp) for one in empty if one.stamp is not None]
        return GalleryIndex(
            root=self._root,
            image_features=cache.collect([images[entry.image].row for entry in entries]),
            image_ids=TextTable.of(entry.image.image_id for entry in entries),
            paths=TextTable.of(str(entry.image.path) for entry in entries),
            windows=stored_windows([entry.image.window for entry in entries]),
            captions=TextTable.of(captions),
            text_features=self._caption_features(cache, captions),
            caption_image=np.array([row for row, _ in linked], dtype=np.int64),
            caption_text=caption_text,
            tie_order=None,
            stamps=FileStamps.of(stamps),
            info=self._info,
            scenes=SceneTable.of([entry.image for entry in entries], stamps, nothing),
        )

    def _caption_features(self, cache: FeatureCache, captions: list[str]) -> Features:
        features = np.empty((len(captions), self._encoder.dim), dtype=np.float32)
        new: list[int] = []
        for row, caption in enumerate(captions):
            stored = cache.caption(caption)
            if stored is None:
                new.append(row)
            else:
                features[row] = stored
        if new:
            missing = [captions[row] for row in new]
            features[new] = encode_prompted(self._encoder.encode_texts, missing, self._source.templates)
        return features

    def _rows_of_old(
        self, cache: FeatureCache, entries: Sequence[Entry], images: Mapping[ImageRef, CachedFeature]
    ) -> NDArray[np.int64]:
        """Where each row of the index that is there is now, [N before]; -1 where it is gone."""
        before = 0 if cache.index is None else len(cache.index)
        rows = np.full(before, -1, dtype=np.int64)
        for row, image in enumerate(entry.image for entry in entries):
            if images[image].row < before:
                rows[images[image].row] = row
        return rows

    def _tower(self) -> dict[str, IndexFile]:
        """The text half, if there is one: that of the index that is there where it is of this model, else a new one."""
        if not isinstance(self._encoder, HasTextTower):
            return {}
        try:
            marker = read_marker(self._root)
            path = marker.path_of("text_tower")
            if path is not None and open_text_tower(path).info.model_sha256 == self._info.model_sha256:
                return {"text_tower": marker.files["text_tower"]}
        except CmpaglError:
            pass  # there is none yet, or it is unreadable
        return {"text_tower": write_named(self._root, "text_tower", self._encoder.write_text_tower)}

    def _say_tiles(self) -> None:
        if not self._scenes:
            return
        said = f"{self._tiles:,} tiles are cut out of {self._scenes:,} scene{'s' if self._scenes > 1 else ''}"
        if self._source.tiling.is_default:
            said += (
                f" of over {SCENE_PIXELS / 1e6:g} megapixels, {DEFAULT_TILE_PX} px each; --tile chooses another size, "
                "--tile 0 takes each scene as one image"
            )
        self._progress.say(said)

    def _say(self, count: int, unchanged: int, left_out: Sequence[Broken]) -> None:
        if unchanged:
            self._progress.say(f"{unchanged:,} of {count:,} images are unchanged and keep their features")
        for item in left_out[:_SAID_AT_MOST]:
            self._progress.say(f"left out: {item.why}")
        more = len(left_out) - _SAID_AT_MOST
        if more > 0:
            self._progress.say(f"left out: {more:,} more, listed in {self._root / INFO_FILE}")


def _image_id(entry: Entry) -> str:
    return entry.image.image_id


def _lookup(cache: FeatureCache, image: ImageRef) -> CachedFeature | Broken | None:
    try:
        return cache.lookup(image)
    except OSError as error:
        return Broken(image, str(cannot_read(image.path, error)))
    except DataError as error:
        return Broken(image, str(error))
