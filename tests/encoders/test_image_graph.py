"""An image encoder run by ONNX Runtime: torch's features, a fingerprint that says so, and torch where it cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cmpagl_core.encoders import run_graph as run_graph_module
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encode import encode_images
from cmpagl_core.encoders.image_graph import ImageGraph, graph_path
from cmpagl_core.encoders.onnx_export import export_image_encoder
from cmpagl_core.encoders.run_graph import graph_info
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.progress import Silent
from cmpagl_core.runs import Run, open_run
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import build_index
from tests.conftest import Told

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return open_run(tiny_run)


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the graph of the run."""
    root = tmp_path_factory.mktemp("cache")
    path = graph_path(root, run.info.weights_sha256)
    parity = export_image_encoder(run.load(), graph_info(run), path)
    assert parity.largest_difference < 1e-4
    assert parity.smallest_cosine > 0.9999
    return root


@pytest.fixture
def cache(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "cache"))


def test_the_graph_has_the_features_of_torch_in_any_number_of_threads(
    run: Run, exported: Path, tiny_images: Path
) -> None:
    refs = [ImageRef(path.name, path) for path in sorted(tiny_images.rglob("*.jpg"))]
    for threads, tta, views in ((1, "none", 1), (3, "d4", 8)):
        expected = encode_images(run.load(), refs, Silent(), tta=tta)
        graph = ImageGraph(graph_path(exported, run.info.weights_sha256), run.info.weights_sha256, threads)
        found = np.empty_like(expected)
        for batch in graph.batches(refs, views):
            found[batch.rows] = batch.features
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_index_says_what_encoded_it_and_stays_with_that(
    run: Run, cache: Path, tiny_images: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_images, tmp_path / "images"))
    made = {}
    for name, onnx in (("torch", "never"), ("runtime", "kept")):
        encoder, root = CmpaglEncoder(run, Silent(), CPU, cache, onnx=onnx), tmp_path / name
        info = build_index(encoder, folder_source(folder), root, Silent()).index.info
        assert encoder.with_tta("none").fingerprint.precision == info.precision
        later = CmpaglEncoder(run, Silent(), CPU, cache).preparing_as(info.preprocessing, info.precision)
        assert build_index(later, folder_source(folder), root, Silent()).encoded == 0
        made[name] = info.precision
    assert made == {"torch": "fp32", "runtime": "fp32 by ONNX Runtime"}


def test_an_index_that_the_runtime_encodes_builds_no_model_and_has_the_same_text_encoder(
    run: Run, cache: Path, tiny_images: Path, tmp_path: Path
) -> None:
    towers = []
    for onnx in ("never", "kept"):
        encoder = CmpaglEncoder(run, Silent(), CPU, cache, onnx=onnx)
        index = build_index(encoder, folder_source(tiny_images), tmp_path / onnx, Silent()).index
        assert ("loaded" in vars(encoder)) is (onnx == "never")
        assert index.tower is not None
        towers.append(index.tower.read_bytes())
    assert towers[0] == towers[1]


def test_a_broken_graph_or_one_of_another_model_is_refused_and_written_again(run: Run, cache: Path) -> None:
    path = graph_path(cache, run.info.weights_sha256)
    with pytest.raises(DataError, match="is of another model or version"):
        ImageGraph(path, "0" * 64)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be run by ONNX Runtime"):
        ImageGraph(path, run.info.weights_sha256)
    told = Told()
    assert CmpaglEncoder(run, told, CPU, cache).fingerprint.precision == "fp32"
    assert CmpaglEncoder(run, told, CPU, cache, onnx="write").fingerprint.precision == "fp32 by ONNX Runtime"
    assert told.messages[0].startswith("not used: ")
    assert told.messages[-1].startswith("writing the image encoder of run tiny")
    ImageGraph(path, run.info.weights_sha256)


def test_a_graph_is_kept_for_queries_where_torch_encodes_the_index(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmpagl_core.encoders.cmpagl.usable_precision", lambda *_: "bf16")
    encoder = CmpaglEncoder(run, Silent(), CPU, tmp_path, onnx="write")
    assert encoder.fingerprint.precision == "bf16"
    encoder.keep_graph()
    ImageGraph(graph_path(tmp_path, run.info.weights_sha256), run.info.weights_sha256)


def test_torch_encodes_where_nothing_else_can(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise CmpaglError("the image encoder cannot be written as ONNX (no such operator)")

    monkeypatch.setattr("cmpagl_core.encoders.onnx_export.export_image_encoder", fail)
    told = Told()
    assert CmpaglEncoder(run, told, CPU, tmp_path, onnx="write").fingerprint.precision == "fp32"
    assert told.messages[-1].startswith("images are encoded by torch: ")
    monkeypatch.setattr(run_graph_module, "runtime_is_installed", lambda: False)
    assert CmpaglEncoder(run, Silent(), CPU, tmp_path, onnx="write").graph is None
