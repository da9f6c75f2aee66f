"""Pieces of scenes make a data set as images do: read by one reader everywhere, in the way the manifest names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets.loading import WHOLE, Draw, ImageFiles
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.decode import Decoded, image_decoder
from cmpagl_core.imagery.images import decoded_px, open_image, read_pixel_values, to_pixel_values
from cmpagl_core.imagery.reader import open_ref
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import dataset_source
from cmpagl_core.search.indexing import build_index
from tests.conftest import Cmpagl
from tests.imagery.making import UTM, ground, write

AS_ASKED = Reading("3,2,1", "range:0,3000")


@pytest.fixture
def chips(tmp_path: Path) -> Path:
    """Ten pieces of 64 x 64 pixels in 16 bits and five bands, which nothing names, with a caption each."""
    folder = tmp_path / "chips"
    for number in range(10):
        write(folder / f"chip_{number}.tif", ground(bands=5, side=64, seed=number).astype(np.uint16), **UTM)
    rows = [f"chip_{number}.tif,a field of kind {number}" for number in range(10)]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    return folder


def test_pieces_are_read_as_the_manifest_says(cmpagl: Cmpagl, chips: Path, tmp_path: Path) -> None:
    result = cmpagl("prepare", "folder", chips, "--name", "x")
    assert result.exit_code == 3
    assert "pass --bands 4,3,2 or a preset" in (tmp_path / "data" / "x" / "problems.csv").read_text() + result.stderr
    result = cmpagl("prepare", "folder", chips, "--name", "x", "--bands", AS_ASKED.bands, "--stretch", AS_ASKED.stretch)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "data" / "x" / "manifest.json").read_text())
    assert (manifest["bands"], manifest["stretch"]) == ("3,2,1", "range:0,3000")
    split = open_prepared(tmp_path / "data" / "x").split("all")
    assert split.reading == split.subset([1, 0]).reading == AS_ASKED
    expected = to_pixel_values(open_image(split.paths[0], reading=AS_ASKED), 32)
    trained = ImageFiles(split, 32).gather([Draw(0, 0, 0, WHOLE)])[0]
    indexed = image_decoder(lambda image: to_pixel_values(image, 32), decoded_px(32))(split.images[0])
    assert isinstance(indexed, Decoded)
    for found in (trained, indexed.pixel_values, read_pixel_values(split.paths[0], 32, AS_ASKED)):
        assert torch.equal(found, expected)
    assert (
        "up to date"
        in cmpagl(
            "prepare", "folder", chips, "--name", "x", "--bands", AS_ASKED.bands, "--stretch", AS_ASKED.stretch
        ).stdout
    )


def test_an_index_of_a_data_set_is_read_as_it_was_prepared(
    cmpagl: Cmpagl, chips: Path, tmp_path: Path, fake_encoder: Any
) -> None:
    asked = ("--bands", AS_ASKED.bands, "--stretch", AS_ASKED.stretch)
    assert cmpagl("prepare", "folder", chips, "--name", "x", *asked).exit_code == 0
    source = dataset_source(open_prepared(tmp_path / "data" / "x"))
    index = build_index(fake_encoder(), source, tmp_path / "index", Silent()).index
    assert index.info.reading == index.image(0).reading == AS_ASKED
    assert np.array_equal(np.asarray(open_ref(index.image(0))), np.asarray(open_ref(source.entries[0].image)))
    assert index.image(0).bounds == (400_000, 4_999_360, 400_640, 5_000_000)


def test_another_reading_is_another_data_set(cmpagl: Cmpagl, chips: Path, tmp_path: Path) -> None:
    for name, bands in (("a", "3,2,1"), ("b", "1,2,3")):
        assert cmpagl("prepare", "folder", chips, "--name", name, "--bands", bands).exit_code == 0
    first, second = (open_prepared(tmp_path / "data" / name) for name in ("a", "b"))
    assert first.manifest.sha256 != second.manifest.sha256
    assert first.split("all").image_sha256 == second.split("all").image_sha256
    assert not set(first.split("all").image_keys) & set(second.split("all").image_keys)  # of maps that are cached


def test_sixteen_bits_of_three_bands_need_no_option(cmpagl: Cmpagl, tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / "chips" / "field" / f"{number}.tif", ground(side=64, seed=number).astype(np.uint16))
    assert cmpagl("prepare", "folder", tmp_path / "chips", "--name", "x").exit_code == 0
    split = open_prepared(tmp_path / "data" / "x").split("all")
    assert split.image_keys == split.image_sha256
    assert 60 < np.asarray(open_image(split.paths[0])).mean() < 200


def test_a_copy_takes_along_what_an_image_is_read_with(cmpagl: Cmpagl, chips: Path, tmp_path: Path) -> None:
    for number in range(10):
        write(chips / f"chip_{number}.img", ground(bands=1, side=64, seed=number).astype(np.uint16), driver="ENVI")
        (chips / f"chip_{number}.tif").unlink()
    captions = chips / "captions.csv"
    captions.write_text(captions.read_text().replace(".tif", ".img"))
    assert cmpagl("prepare", "folder", chips, "--name", "x", "--copy").exit_code == 0
    shutil.rmtree(chips)
    split = open_prepared(tmp_path / "data" / "x").split("all")
    assert open_image(split.paths[3]).size == (64, 64)
    header = split.paths[3].with_suffix(".hdr")
    header.write_text(header.read_text() + "\n")
    with pytest.raises(Exception, match="has changed since x was prepared"):
        open_prepared(tmp_path / "data" / "x").split("all")


def test_bands_are_for_folders(cmpagl: Cmpagl) -> None:
    result = cmpagl("prepare", "ucm", "--bands", "3,2,1")
    assert (result.exit_code, "does not take --bands" in result.stderr) == (2, True)
    result = cmpagl("prepare", "folder", ".", "--bands", "x")
    assert (result.exit_code, "is not a choice of bands" in result.stderr) == (2, True)


def test_a_large_image_of_a_data_set_has_its_true_size(
    cmpagl: Cmpagl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmpagl_core.imagery.scene_file.MAX_PIXELS", 10_000)  # else a test of 100 megapixels
    for number in range(10):
        planes = ground(side=150, seed=number).astype(np.uint16)
        write(tmp_path / "chips" / "field" / f"{number}.tif", planes, photometric="RGB")
    Image.new("RGB", (90, 80), (5, 9, 200)).save(tmp_path / "chips" / "field" / "10.png")
    assert cmpagl("prepare", "folder", tmp_path / "chips", "--name", "x").exit_code == 0
    images = open_prepared(tmp_path / "data" / "x").images
    assert sorted(set(zip(images["width"], images["height"], strict=True))) == [(90, 80), (150, 150)]
