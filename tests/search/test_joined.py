"""Several indexes are searched as one that has all their images: the same hits, scores and order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.errors import MismatchError
from cmpagl_core.progress import Silent
from cmpagl_core.search.filters import Filters
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.joined import join_indexes, search_shards
from cmpagl_core.search.stores.exact import ExactStore
from tests.conftest import Cmpagl
from tests.imagery.making import UTM, ground, write


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    k=st.integers(1, 40),
    seed=st.integers(0, 1000),
    kept=st.sampled_from([None, 0.0, 0.3, 0.9]),
    equal=st.booleans(),
)
def test_shards_give_what_one_store_gives(sizes: list[int], k: int, seed: int, kept: float | None, equal: bool) -> None:
    random = np.random.default_rng(seed)
    drawn = random.standard_normal((sum(sizes) + 1, 8)).astype(np.float32)
    drawn[: len(drawn) // 2] = drawn[0] if equal else drawn[: len(drawn) // 2]  # ties, within and across shards
    features = drawn[1:] / np.linalg.norm(drawn[1:], axis=1, keepdims=True)
    where = None if kept is None else random.random(len(features)) < kept
    queries = random.standard_normal((3, 8)).astype(np.float32)
    parts = np.split(features, np.cumsum(sizes)[:-1])
    found = search_shards([ExactStore(part) for part in parts], queries, k, where)
    if not len(features) or (where is not None and not where.any()):
        assert found.rows.shape == (3, 0)
        return
    expected = ExactStore(features).top_k(queries, k, where)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.fixture
def halves(fake_encoder: Any, tiny_images: Path, tmp_path: Path) -> list[GalleryIndex]:
    """Two indexes of one folder each, with a scene in the second; tiny_images has two folders."""
    folders = sorted(path for path in Path(shutil.copytree(tiny_images, tmp_path / "images")).iterdir())
    write(folders[1] / "scene_20240102.tif", ground(side=64, high=255).astype(np.uint8), photometric="RGB", **UTM)
    return [
        build_index(fake_encoder(), folder_source(folder), tmp_path / folder.name, Silent()).index for folder in folders
    ]


def test_a_joined_index_is_its_parts(halves: list[GalleryIndex]) -> None:
    joined = join_indexes(halves)
    assert len(joined) == sum(map(len, halves))
    rows = [image for index in halves for image in (index.image(row) for row in range(len(index)))]
    assert [joined.image(row) for row in range(len(joined))] == rows
    whole = np.concatenate([index.image_features for index in halves])
    for part in (slice(3, 11), slice(None, None, 3), [9, 0, 4], whole[:, 0] > 0, 7, -1):
        np.testing.assert_array_equal(joined.image_features[part], whole[part])
    allowed = Filters(since="2024").mask(joined)
    assert allowed is not None
    assert [joined.image_ids[row] for row in np.flatnonzero(allowed)] == ["scene_20240102.tif"]


def test_indexes_of_different_models_are_not_joined(
    halves: list[GalleryIndex], fake_encoder: Any, tiny_images: Path, tmp_path: Path
) -> None:
    other = build_index(fake_encoder("other"), folder_source(tiny_images), tmp_path / "other", Silent()).index
    with pytest.raises(MismatchError, match=r"have features of different models or preprocessing; index both"):
        join_indexes([halves[0], other])


def test_two_indexes_are_asked_at_once(cmpagl: Cmpagl, tiny_run: Path, tiny_images: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    folders = sorted(path for path in tiny_images.iterdir())
    for name, folder in (("all", tiny_images), *((folder.name, folder) for folder in folders)):
        assert cmpagl("index", folder, "--name", name).exit_code == 0
    several = [word for folder in folders for word in ("--index", folder.name)]

    def hits(*arguments: str) -> list[tuple[str, float]]:
        found = json.loads(cmpagl("retrieve", *arguments, "-k", "9", "--format", "json").stdout)
        return [(hit["path"], round(hit["score"], 5)) for hit in found]  # encoded in other batches

    like = ("--diverse", "--like")
    assert hits(*like, "scene_08.jpg", *several) == hits(*like, f"{folders[1].name}/scene_08.jpg", "--index", "all")
    told = cmpagl("retrieve", "a field", *several, "--rerank", "csls")
    assert (told.exit_code, "searched by their own cosines" in told.stderr) == (2, True)
