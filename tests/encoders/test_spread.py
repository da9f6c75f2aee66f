"""Images encoded in shards by workers: the features, bytes and broken ones of one process, whatever the order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encode import encode_images
from cmpagl_core.encoders.encoder import Encoder, collect
from cmpagl_core.encoders.open_clip import open_clip_encoder
from cmpagl_core.encoders.spread import ShardResult, ShardWorker, SpreadImages, WorkerOrder, ordered_encoder
from cmpagl_core.errors import CmpaglError, ExitCode, InterruptedByUserError, MismatchError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reading import DEFAULT
from cmpagl_core.imagery.tiles import WHOLE, Tiling
from cmpagl_core.progress import Silent
from cmpagl_core.runs import open_run
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import BuiltIndex, build_index
from tests.imagery.making import UTM, ground, write

TILES = Tiling(96)


class InProcess:
    """An engine whose two workers are here: shards come last first, and the first of them twice."""

    def __init__(self, most: int | None = None, lose: int = 0) -> None:
        self.orders: list[str] = []
        self.shards: list[str] = []
        self._most, self._lose = most, lose

    def encode(self, order: str, shards: Sequence[str]) -> Iterator[ShardResult]:
        self.orders.append(order)
        self.shards += shards
        workers = [ShardWorker(order), ShardWorker(order)]
        for number in reversed(range(self._lose, len(shards))):
            if self._most == len(shards) - 1 - number:
                raise KeyboardInterrupt
            yield workers[number % 2](shards[number])
        if not self._lose:
            yield workers[0](shards[-1])


@pytest.fixture
def encoder(tiny_run: Path) -> CmpaglEncoder:
    return CmpaglEncoder(open_run(tiny_run), Silent())


@pytest.fixture
def folder(tiny_images: Path, tmp_path: Path) -> Path:
    """12 images, a broken one, and a scene of 9 tiles of which one is empty."""
    copied = Path(shutil.copytree(tiny_images, tmp_path / "images"))
    (copied / "broken.jpg").write_bytes(b"no image")
    planes = ground(side=288, low=200).astype(np.uint16)
    planes[:, :96, :96] = 0
    write(copied / "scene_20200102.tif", planes, nodata=0, photometric="RGB", **UTM)
    return copied


def make(encoder: Encoder, folder: Path, root: Path, images_by: Any = None, tiling: Tiling = TILES) -> BuiltIndex:
    return build_index(encoder, folder_source(folder, DEFAULT, tiling), root, Silent(), images_by=images_by)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*.safetensors")}


def test_an_index_by_workers_is_that_of_one_process_byte_for_byte(
    encoder: CmpaglEncoder, folder: Path, tmp_path: Path
) -> None:
    alone = make(encoder, folder, tmp_path / "alone")
    engine = InProcess()
    spread = make(encoder, folder, tmp_path / "spread", SpreadImages(encoder, engine, "cpu", 7))
    assert len(engine.shards) == 5  # of 5 images, one batch of the recipe
    assert sum("#" in shard for shard in engine.shards) > 1  # the scene's tiles are in several
    assert (spread.encoded, spread.empty) == (alone.encoded, alone.empty) == (20, 1)
    assert [one.why for one in spread.left_out] == [one.why for one in alone.left_out]
    assert files_of(tmp_path / "spread") == files_of(tmp_path / "alone")


def test_what_came_before_an_interruption_is_not_encoded_again(
    encoder: CmpaglEncoder, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedByUserError, match="are kept"):
        make(encoder, folder, tmp_path / "index", SpreadImages(encoder, InProcess(most=3), "cpu", 5))
    engine = InProcess()
    built = make(encoder, folder, tmp_path / "index", SpreadImages(encoder, engine, "cpu", 5))
    assert built.encoded < 12
    assert sum(len(json.loads(shard)["images"]) for shard in engine.shards) < 14
    assert len(built.index) == 20


def test_exported_features_are_those_of_one_process(encoder: CmpaglEncoder, tiny_images: Path, tiny_run: Path) -> None:
    exact = CmpaglEncoder(open_run(tiny_run), Silent(), rounded=False)
    images = [ImageRef(path.name, path) for path in sorted(tiny_images.rglob("*.jpg"))]
    spread = collect(SpreadImages(exact, InProcess(), "cpu", 5).encode_images(images), len(images), Silent())
    np.testing.assert_array_equal(spread, encode_images(open_run(tiny_run).load(), images, Silent()))


@pytest.mark.slow
def test_workers_build_an_open_clip_model_from_its_checkpoint(tiny_clip: Path, folder: Path, tmp_path: Path) -> None:
    spec = f"open_clip:{tiny_clip / 'tiny-clip.json'}:{tiny_clip / 'plain.pt'}"
    encoder = open_clip_encoder(spec, Silent(), torch.device("cpu"))
    make(encoder, folder, tmp_path / "alone", tiling=WHOLE)
    make(encoder, folder, tmp_path / "spread", SpreadImages(encoder, InProcess(), "cpu", 1), WHOLE)
    assert files_of(tmp_path / "spread") == files_of(tmp_path / "alone")


def test_an_order_is_kept_to_the_letter(encoder: CmpaglEncoder) -> None:
    order = WorkerOrder.of(encoder.with_tta("d4"), "cpu")
    assert WorkerOrder.parse(str(order)) == order
    assert ordered_encoder(order).fingerprint == order.fingerprint


def test_a_worker_with_another_model_or_version_refuses(encoder: CmpaglEncoder) -> None:
    order = WorkerOrder.of(encoder, "cpu")
    other = replace(order, fingerprint=replace(order.fingerprint, model_sha256="0" * 64))
    with pytest.raises(MismatchError, match=r"a worker's encoder of .*tiny has model_sha256 '.*', and '0{64}'"):
        ordered_encoder(other)
    with pytest.raises(MismatchError, match=r"a worker has cmpagl .*, and 0\.0 asked it"):
        WorkerOrder.parse(str(replace(order, version="0.0")))


def test_what_a_worker_refuses_is_raised_with_its_exit_code(encoder: CmpaglEncoder, folder: Path) -> None:
    class Elsewhere(InProcess):
        def encode(self, order: str, shards: Sequence[str]) -> Iterator[ShardResult]:
            moved = replace(WorkerOrder.parse(order), source="/nowhere/run")
            yield from super().encode(str(moved), shards)

    images = [ImageRef("a", folder / "broken.jpg")]
    with pytest.raises(CmpaglError, match="/nowhere/run is not a finished run") as told:
        list(SpreadImages(encoder, Elsewhere(), "cpu").encode_images(images))
    assert told.value.exit_code == ExitCode.DATA


def test_an_engine_that_loses_a_shard_is_noticed(encoder: CmpaglEncoder, tiny_images: Path) -> None:
    images = [ImageRef(path.name, path) for path in sorted(tiny_images.rglob("*.jpg"))]
    with pytest.raises(CmpaglError, match="1 of 3 shards were not encoded; run the same command again"):
        list(SpreadImages(encoder, InProcess(lose=1), "cpu", 5).encode_images(images))
