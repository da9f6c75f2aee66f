"""Maps of a frozen backbone on disk, for all flips and rotations, so that small machines train in minutes (ours).

A cache is a folder of shards under `cache/backbones/<key>/`. The key covers everything that affects the maps except
the image; a shard lists its images by the SHA-256 of their files. Shards are written atomically and never changed, so a
kill loses at most one. If two trainings need the same maps, one computes them while the other waits. In fp32 on a CPU
many maps are computed by ONNX Runtime, where it is installed, into a folder of their own; maps of both are used.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmpagl_core.datasets.augment import allowed_views
from cmpagl_core.datasets.loading import Draw
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.backbone_maps import Half, MapsEncoder, RuntimeMaps, TorchMaps, folded, maps_graph
from cmpagl_core.encoders.image_graph import PRECISION, GraphInfo, graph_path
from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import IMAGE_MEAN, IMAGE_STD, decoded_px
from cmpagl_core.imagery.stamps import stamp_file
from cmpagl_core.locks import hold, sweep_lock
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.progress import Progress
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_keys import keyed_fields

CACHE_FORMAT = 2

_BACKBONE = "image_encoder.patch_embed."  # prefix of its weights' names in a model
_SHARD_BYTES = 64 << 20
_MANY_VIEWS = 512  # worth the two seconds that it takes to write a graph for ONNX Runtime

_AFTER = "uses the maps, or what is computed from them"
NOT_IN_BACKBONE: Mapping[str, str] = {
    **dict.fromkeys(("text_encoder", "fusion_encoder", "losses"), _AFTER),
    "distill": "gives a start to Gswin from patches, which has no backbone",
    "optim": "a backbone is frozen while its maps are cached",
    "train": "except for the precision, which is in the key as it is used",
    "evaluate": "except for the views, which are in the key with those of augmentation",
    "data.dataset": "an image is known by the hash of its file",
    "data.selection": "an image is known by the hash of its file",
    "data.workers": "threads that decode ahead change no byte",
    "data.max_caption_tokens": "affects only captions",
    "data.augment": "its views are in the key",
    "data.crop_scale_min": "maps are cached for uncropped images only",
    **dict.fromkeys(
        (
            f"image_encoder.{name}"
            for name in (
                "size", "width", "depths", "num_heads", "window_size", "mlp_ratio", "drop_path", "dropout",
                "layer_scale_init", "shifted_windows", "global_window", "global_window_source", "global_query",
                "branches", "global_stages", "init", "weights", "backbone_head", "backbone_skip",
                "backbone_skip_dropout",
            )
        ),
        _AFTER,
    ),
    "image_encoder.backbone_weights": "the tensors themselves are hashed",
    "image_encoder.extra_backbone_weights": "the tensors themselves are hashed",
    "image_encoder.backbone_trainable": "says when there is a cache, not what is in it",
    "image_encoder.backbone_unfreeze_epoch": "says when there is a cache, not what is in it",
}  # fmt: skip


@dataclass(frozen=True)
class BackboneCache:
    """Cached maps of images; `rows` finds them by `DataSplit.image_keys`, mostly the file's sha256."""

    shapes: tuple[tuple[int, int, int], ...]  # (C, h, w) of each of the backbone's own maps
    views: tuple[int, ...]  # stored views, in the order of the shards' second axis
    shards: tuple[Half, ...]  # each [images, views, values], memory-mapped
    rows: dict[str, tuple[int, int]]  # an image's key -> shard, row in it

    def source(self, split: DataSplit) -> CachedMaps:
        """These maps as an image source for the rows of a split."""
        return CachedMaps(self, split.image_keys)

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """flat: [B, values]. Returns the backbone's own maps [B, C, h, w], finest first."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        return [
            part.reshape(-1, *shape) for part, shape in zip(torch.split(flat, sizes, dim=1), self.shapes, strict=True)
        ]


@dataclass(frozen=True)
class CachedMaps:
    """An image source that reads a batch's maps from a cache, in disk order."""

    cache: BackboneCache
    image_sha256: tuple[str, ...]

    def gather(self, draws: Sequence[Draw]) -> Tensor:
        """The maps of these draws, flattened: float32 [B, values]."""
        cache = self.cache
        view_place = {view: place for place, view in enumerate(cache.views)}
        places = [(*cache.rows[self.image_sha256[draw.row]], view_place[draw.view]) for draw in draws]
        flat = np.empty((len(draws), cache.shards[0].shape[2]), dtype=np.float32)
        for number in sorted(range(len(draws)), key=places.__getitem__):
            shard, row, view = places[number]
            flat[number] = cache.shards[shard][row, view]
        return torch.from_numpy(flat)


@dataclass(frozen=True)
class BackboneSettings:
    """Everything that affects a cached map except the backbone's weights and the image.

    fields: the relevant recipe fields as JSON: the maps, backbones and input sizes.
    """

    fields: str
    image_size_px: int
    views: tuple[int, ...]
    precision: str
    device: str = "cpu"  # its type

    @property
    def ways(self) -> tuple[BackboneSettings, ...]:
        """The settings of the same maps by torch and, where it may compute them, by ONNX Runtime."""
        can = (self.device, self.precision) == ("cpu", "fp32")
        return (self, replace(self, precision=PRECISION)) if can else (self,)

    def key(self, weights_sha256: str) -> str:
        """The name of the cache folder."""
        decoded = decoded_px(self.image_size_px)
        preprocessing = {"decoded_px": decoded, "resize": "bicubic", "mean": IMAGE_MEAN, "std": IMAGE_STD}
        about = {"format": CACHE_FORMAT, "weights": weights_sha256, "preprocessing": preprocessing, **vars(self)}
        return sha256_text(canonical_json(about))[:24]


def views_needed(recipe: Recipe) -> tuple[int, ...]:
    """The views that a cache must store: those of augmentation and of test-time augmentation."""
    augment = "d4" if recipe.evaluate.tta == "d4" else recipe.data.augment
    return allowed_views(augment, "")


def backbone_cache_folder(cache_root: Path) -> Path:
    """Folder of the backbone caches in a workspace's cache."""
    return cache_root / "backbones"


def backbone_settings(recipe: Recipe, device: torch.device) -> BackboneSettings:
    """The settings of a recipe with a backbone, whose maps are computed on `device`."""
    precision = usable_precision(device, recipe.train.precision)
    fields = canonical_json(keyed_fields(recipe, NOT_IN_BACKBONE))
    return BackboneSettings(fields, recipe.data.image_size_px, views_needed(recipe), precision, device.type)


def open_backbone_cache(
    folder: Path, backbone: Backbone, weights: Mapping[str, Tensor], settings: BackboneSettings, device: torch.device
) -> BackboneCache | None:
    """The maps that a training cached under `folder` for this backbone, or None.

    weights: of a complete model, by their names before norms are folded. Raises DataError for a broken shard.
    """
    own = (
        name.removeprefix(_BACKBONE) for name in weights if name.startswith((f"{_BACKBONE}body.", f"{_BACKBONE}extra."))
    )
    tensors = {name.partition(".")[2]: weights[_BACKBONE + name] for name in own}
    homes = _homes(folder, settings, _tensors_sha256(tensors))
    if not any(home.is_dir() for home in homes):
        return None
    return _open_cache(homes, settings, map_shapes(backbone, settings, device))


def backbone_cache(
    folder: Path,
    backbone: Backbone,
    settings: BackboneSettings,
    splits: Sequence[DataSplit],
    progress: Progress,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> BackboneCache:
    """The cache under `folder` with every image of these splits, after adding the missing ones.

    Of several processes, each adds its part, while rank 0 holds the lock. Reports in advance how much it will write.
    Raises DataError for an image that is unreadable or has changed since it was prepared, CmpaglError if there is not
    enough disk space.
    """
    images = _images(splits, progress, ranks)
    weights = weights_sha256(backbone)
    homes = _homes(folder, settings, weights)
    shapes = map_shapes(backbone, settings, device)
    cache = _open_cache(homes, settings, shapes)
    (missing,) = ranks.greatest([sum(image not in cache.rows for image in images)])
    if missing:
        encoder = maps_encoder(folder.parent, backbone, settings, weights, int(missing), device, progress, ranks)
        home = homes[-1] if isinstance(encoder, RuntimeMaps) else homes[0]
        with hold(home, progress.say) if ranks.first else nullcontext():
            ranks.wait()  # until rank 0 has the lock
            _add_missing(home, images, _open_cache(homes, settings, shapes), encoder, progress, ranks)
            ranks.wait()  # until all have written
        cache = _open_cache(homes, settings, shapes)
    else:
        for home in homes:
            sweep_lock(home)
    return cache


def _homes(folder: Path, settings: BackboneSettings, weights_sha256: str) -> list[Path]:
    return [folder / way.key(weights_sha256) for way in settings.ways]


def maps_encoder(
    cache_root: Path,
    backbone: Backbone,
    settings: BackboneSettings,
    weights_sha256: str,
    images: int,
    device: torch.device,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> MapsEncoder:
    """ONNX Runtime for many maps in fp32 on a CPU, if it is installed, else torch. Rank 0 writes the graph."""
    whole = folded(backbone)
    by_torch = TorchMaps(whole, settings.image_size_px, settings.views, device, settings.precision)
    if len(settings.ways) == 1 or images * len(settings.views) < _MANY_VIEWS:
        return by_torch
    key = settings.ways[1].key(weights_sha256)
    info, path = GraphInfo(key, settings.image_size_px, rounded=False), graph_path(cache_root, key)
    graph = maps_graph(path, whole, info, progress) if ranks.first else None
    if ranks.any(ranks.first and graph is None):
        return by_torch
    graph = graph or maps_graph(path, whole, info, progress)
    return by_torch if graph is None else RuntimeMaps(graph, settings.views)


def _add_missing(
    home: Path,
    images: Mapping[str, ImageRef],
    cache: BackboneCache,
    encoder: MapsEncoder,
    progress: Progress,
    ranks: Ranks,
) -> None:
    """Make the shards of images that are in none yet. images: by their keys; cache: what is there."""
    missing = [image for image in images if image not in cache.rows]
    ranks.wait()  # until all have seen the same shards
    values = sum(int(np.prod(shape)) for shape in cache.shapes)
    each = 2 * len(cache.views) * values
    if missing:
        _announce(home, len(missing), len(images), len(cache.views), each, progress)
    missing = missing[ranks.part(len(missing))]
    if missing:
        size = max(1, _SHARD_BYTES // each)
        with progress.task("cache backbone maps", len(missing), "img") as advance:
            for start in range(0, len(missing), size):
                part = missing[start : start + size]
                maps = np.empty((len(part), len(cache.views), values), dtype=np.float16)
                done = 0
                try:
                    for count in _fill(maps, [images[key] for key in part], encoder):
                        done += count
                        advance(count)
                finally:  # finished maps are kept on an interruption or a broken image
                    if done:
                        _write_shard(home, part[:done], maps[:done])


def _fill(maps: Half, images: Sequence[ImageRef], encoder: MapsEncoder) -> Iterator[int]:
    """Compute the maps of some images into `maps` [images, views, values]; yields how many were just done.

    images: each with the sha256 of its file as its id.
    """
    done = 0
    with closing(encoder.batches(images)) as batches:
        for batch in batches:
            if batch.decoded.broken:
                broken = batch.decoded.broken[0]
                raise DataError(broken.why, hint=f"repair or remove {broken.image.path.name}")
            for row, stamp in zip(batch.decoded.rows, batch.decoded.stamps, strict=True):
                if stamp.sha256 != images[row].image_id:
                    raise _was_changed(images[row].path)
            count = len(batch.maps)
            maps[done : done + count] = batch.maps
            done += count
            yield count


def weights_sha256(backbone: Backbone) -> str:
    """Hash of the tensors that compute the cached maps, by name (not of the head, which is applied after the cache)."""
    return _tensors_sha256({**backbone.body.state_dict(), **backbone.extra.state_dict()})


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.numpy().tobytes())
    return digest.hexdigest()


def _images(splits: Sequence[DataSplit], progress: Progress, ranks: Ranks) -> dict[str, ImageRef]:
    """Each different image by its key, its file's sha256 as its id; which is checked: a changed one is never stale.

    Each of several processes checks its part.
    """
    images = [
        (key, ImageRef(sha256, path, reading=split.reading))
        for split in splits
        for key, sha256, path in zip(split.image_keys, split.image_sha256, split.paths, strict=True)
    ]
    checked = images[ranks.part(len(images))]
    with progress.task("check images", len(checked), "img") as advance:
        for expected, path in ((image.image_id, image.path) for _, image in checked):
            if stamp_file(path).sha256 != expected:
                raise _was_changed(path)
            advance(1)
    return dict(images)


def _was_changed(path: Path) -> DataError:
    return DataError(f"{path} was changed after the data set was prepared", hint="run `cmpagl prepare` again")


def _announce(home: Path, missing: int, all_images: int, views: int, bytes_each: int, progress: Progress) -> None:
    needed = missing * bytes_each
    progress.say(
        f"caching the frozen backbone's maps of {missing:,} images in {views} views: {needed / 1e6:,.0f} MB in {home} "
        f"({all_images - missing:,} images are already cached)"
    )
    existing = next(folder for folder in (home, *home.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CmpaglError(
            f"{home} needs {needed / 1e6:,.0f} MB for the backbone's maps, but only {free / 1e6:,.0f} MB are free",
            hint="free disk space, or choose another place with --workspace",
        )


def map_shapes(
    backbone: Backbone, settings: BackboneSettings, device: torch.device
) -> tuple[tuple[int, int, int], ...]:
    """(C, h, w) of each of a backbone's own maps."""
    blank = torch.zeros(1, 3, settings.image_size_px, settings.image_size_px, device=device)
    with torch.inference_mode():
        return tuple((part.shape[1], part.shape[2], part.shape[3]) for part in backbone.parts(blank))


def _write_shard(home: Path, images: Sequence[str], maps: Half) -> None:
    name = sha256_text("\n".join(images))[:24]
    write_tensor_file(home / f"{name}.safetensors", {"maps": maps}, {"images": list(images)})


def _open_cache(
    homes: Sequence[Path], settings: BackboneSettings, shapes: tuple[tuple[int, int, int], ...]
) -> BackboneCache:
    """The shards of all these folders, those that exist."""
    values = sum(int(np.prod(shape)) for shape in shapes)
    shards: list[Half] = []
    rows: dict[str, tuple[int, int]] = {}
    for path in (path for home in homes for path in sorted(home.glob("*.safetensors"))):
        file = open_tensor_file(path)
        names: Any = file.about.get("images")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path} names no images", hint="delete it; it will be rebuilt")
        maps: Half = file.array("maps", "<f2", (len(names), len(settings.views), values))
        rows.update((name, (len(shards), row)) for row, name in enumerate(names))
        shards.append(maps)
    return BackboneCache(shapes, settings.views, tuple(shards), rows)
