"""A run as an Encoder, loaded on first use (ours).

The maps of a frozen backbone are rounded to half precision, as in a training's cache, so an image has the same features
whether its maps come from the cache or from decoding it. Where torch would compute in fp32 on the CPU and ONNX Runtime
is installed, that encodes the images (`image_graph.py`), which the fingerprint says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch

from cmpagl_core.datasets.augment import Tta, view_count
from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.backbone_cache import BackboneCache, CachedMaps, backbone_cache_folder
from cmpagl_core.encoders.cached import cache_of_run, cached_features, rounded_features
from cmpagl_core.encoders.encode import (
    decoder,
    encode_captions,
    encode_with,
    encoded_batches,
    forward_pass,
    preprocessing,
)
from cmpagl_core.encoders.encoder import EncodedBatch, Features, Fingerprint, Origin
from cmpagl_core.encoders.image_graph import IMAGES_AT_ONCE, PRECISION, ImageGraph
from cmpagl_core.encoders.run_graph import UseOfOnnx, has_frozen_backbone, kept_graph, run_graph
from cmpagl_core.encoders.text_tower import TowerInfo, run_text_tower, save_text_tower
from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reading import DEFAULT
from cmpagl_core.imagery.stamps import stamp_file
from cmpagl_core.progress import Progress
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import LoadedModel, Run

EncodeFiles = Callable[[Sequence[ImageRef]], Iterator[EncodedBatch]]

_ROUNDED = ", the backbone's maps in half precision"


class CmpaglEncoder:
    """A run's two encoders, with the recipe's test-time augmentation.

    cache_root: a workspace's cache, where trainings may have left maps of the run's backbone, and the place of its ONNX
    file. rounded: whether a frozen backbone's maps are rounded; exported features use unrounded maps. onnx: whether
    ONNX Runtime encodes images: never, from a file that is kept, or from one that is written if there is none.
    Raises UsageError for a run without pre-alignment.
    """

    def __init__(
        self,
        run: Run,
        progress: Progress,
        device: torch.device | None = None,
        cache_root: Path | None = None,
        rounded: bool = True,
        onnx: UseOfOnnx = "kept",
    ) -> None:
        if not run.recipe.losses.aligns_features:
            raise UsageError(
                f"run {run.root.name} was trained without pre-alignment, so its features cannot be searched",
                hint="choose another run with --run",
            )
        self._run, self._progress, self._cache_root = run, progress, cache_root
        self._device = device or torch.device("cpu")
        self._rounded, self._rounds = rounded, rounded and has_frozen_backbone(run.recipe)
        self._onnx: UseOfOnnx = onnx if rounded else "never"

    @property
    def run(self) -> Run:
        """Where the encoders come from."""
        return self._run

    @property
    def name(self) -> str:
        return self._run.root.name

    @property
    def dim(self) -> int:
        return self._run.recipe.losses.embed_dim

    @property
    def batch_size(self) -> int:
        return self._run.recipe.evaluate.batch_size if self.graph is None else IMAGES_AT_ONCE

    @property
    def cache_root(self) -> Path | None:
        """The workspace's cache, where it has one."""
        return self._cache_root

    @property
    def rounded(self) -> bool:
        """Whether a frozen backbone's maps are rounded."""
        return self._rounded

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            model_sha256=self._run.info.weights_sha256,
            preprocessing=self._preprocessing,
            precision=self._precision if self.graph is None else PRECISION,
        )

    @property
    def _preprocessing(self) -> str:
        return preprocessing(self._run.recipe) + (_ROUNDED if self._rounds else "")

    @property
    def origin(self) -> Origin:
        return Origin("run", os.path.abspath(self._run.root))  # noqa: PTH100 - resolve() would follow links

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model."""
        return self._run.load(self._device)

    @cached_property
    def graph(self) -> ImageGraph | None:
        """The image encoder for ONNX Runtime; None where torch is to encode."""
        if self._onnx == "never" or self._cache_root is None or self._device.type != "cpu" or self._precision != "fp32":
            return None
        if self._onnx == "kept":
            return kept_graph(self._run, self._cache_root, self._progress)
        return run_graph(self._run, lambda: self.loaded, self._cache_root, self._progress)

    def keep_graph(self) -> None:
        """Write the graph for image queries, which start without torch then, whatever encoded the index."""
        if self._onnx == "write" and self._cache_root is not None:
            run_graph(self._run, lambda: self._run.load(torch.device("cpu")), self._cache_root, self._progress)

    @property
    def _precision(self) -> str:
        return usable_precision(self._device, self._run.recipe.train.precision)

    def with_tta(self, tta: Tta) -> CmpaglEncoder:
        """The same with another test-time augmentation."""
        recipe = override_recipe(self._run.recipe, [f"evaluate.tta={tta}"])
        run = replace(self._run, recipe=recipe)
        return CmpaglEncoder(run, self._progress, self._device, self._cache_root, self._rounded, self._onnx)

    def preparing_as(self, before: str, precision: str = "") -> CmpaglEncoder:
        """The same with the preprocessing described by these words; unchanged if none matches.

        precision: by torch where that is torch's.
        """
        onnx: UseOfOnnx = "never" if precision == self._precision else self._onnx
        usual, exact = (
            CmpaglEncoder(self._run, self._progress, self._device, self._cache_root, rounded, onnx)
            for rounded in (self._rounded, False)
        )
        ways = (encoder.with_tta(tta) for encoder in (usual, exact) for tta in get_args(Tta))
        otherwise = self if onnx == self._onnx else usual
        return next((encoder for encoder in ways if encoder._preprocessing == before), otherwise)

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        """As in `Encoder`; images with cached maps come first."""
        yield from self._encode(images, self.encode_files, in_torch=self.graph is None)

    def encode_by(self, images: Sequence[ImageRef], encode_files: EncodeFiles) -> Generator[EncodedBatch, None, None]:
        """As `encode_images`, with what no training has cached maps of encoded by others. encode_files: as ours."""
        yield from self._encode(images, encode_files, in_torch=False)

    def _encode(
        self, images: Sequence[ImageRef], encode_files: EncodeFiles, in_torch: bool
    ) -> Generator[EncodedBatch, None, None]:
        cache, stamps = self._cache(), {}
        if cache is not None:
            found = enumerate(map(_stamp, images))
            stamps = {row: stamp for row, stamp in found if stamp is not None and stamp.sha256 in cache.rows}
            if stamps:
                self._progress.say(f"{len(stamps):,} of {len(images):,} images have maps that a training cached")
        with ExitStack() as torch_settings:
            if cache is not None or in_torch:
                torch_settings.enter_context(forward_pass(self.loaded))
            if cache is not None:
                yield from self._from_cache(cache, stamps)
            others = [row for row in range(len(images)) if row not in stamps]
            for batch in encode_files([images[row] for row in others]):
                yield replace(batch, rows=[others[row] for row in batch.rows])

    def encode_texts(self, texts: Sequence[str]) -> Features:
        return encode_captions(self.loaded, texts, self._progress)

    def write_text_tower(self, path: Path) -> None:
        tower = None if "loaded" in vars(self) else run_text_tower(self._run)
        if tower is None:
            write_text_tower(path, self.loaded)
        else:  # ONNX Runtime encoded the images, so no model was built
            save_text_tower(path, tower.weights, tower.tokenizer_json, tower.info)

    def _from_cache(self, cache: BackboneCache, stamps: dict[int, FileStamp]) -> Iterator[EncodedBatch]:
        rows = list(stamps)
        source = CachedMaps(cache, tuple(stamp.sha256 for stamp in stamps.values()))
        views = view_count(self._run.recipe.evaluate.tta)
        for places, features in cached_features(self.loaded, source, views):
            found = [rows[place] for place in places]
            yield EncodedBatch(features, found, [stamps[row] for row in found], [])

    def encode_files(self, images: Sequence[ImageRef]) -> Iterator[EncodedBatch]:
        """Decode and encode images, within `forward_pass` unless ONNX Runtime does it."""
        recipe = self._run.recipe
        views = view_count(recipe.evaluate.tta)
        if self.graph is not None:
            return self.graph.batches(images, views)
        if not self._rounds:
            return encoded_batches(self.loaded, images)
        return encode_with(
            lambda pixel_values: rounded_features(self.loaded, pixel_values, views),
            decoder(recipe),
            images,
            recipe.evaluate.batch_size,
        )

    def _cache(self) -> BackboneCache | None:
        if self._cache_root is None or not self._rounds or not backbone_cache_folder(self._cache_root).is_dir():
            return None
        try:
            return cache_of_run(self._run, self.loaded, self._cache_root)
        except DataError as error:
            self._progress.say(f"cached maps are not used: {error}")
            return None


def write_text_tower(path: Path, loaded: LoadedModel) -> None:
    """Write a model's text encoder as a text tower. Raises CmpaglError if writing fails."""
    encoder = loaded.model.text_encoder
    projection = loaded.model.text_projection.state_dict()
    tensors = {
        **encoder.state_dict(),
        **{f"text_projection.{name}": found for name, found in projection.items()},
    }
    info = TowerInfo(
        model_sha256=loaded.sha256,
        pooling=encoder.pooling,
        layers=len(encoder.layers),
        num_heads=encoder.shape.num_heads,
        layer_norm_eps=encoder.shape.layer_norm_eps,
        max_tokens=loaded.tokenizer.max_tokens,
        probes=loaded.model.probes,
        pooled_layers=encoder.pooled_layers,
    )
    weights = {
        name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items() if tensor.is_floating_point()
    }
    save_text_tower(path, weights, loaded.tokenizer.to_json(), info)


def _stamp(image: ImageRef) -> FileStamp | None:
    """None where the file cannot be read: whoever decodes it says why; and for what no training has cached maps of."""
    if image.window is not None or image.reading != DEFAULT:
        return None
    try:
        return stamp_file(image.path)
    except DataError:
        return None
