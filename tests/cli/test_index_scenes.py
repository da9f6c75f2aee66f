"""Scenes from the command line: index with tiles and bands, ask, and find out where a hit lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from tests.conftest import Cmpagl
from tests.imagery.making import UTM, ground, write


def test_a_folder_of_scenes_is_indexed_and_asked(cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    planes = ground(bands=5, side=192).astype(np.uint16)
    planes[:, :64, :64] = 0
    write(tmp_path / "scenes" / "a_20200102.tif", planes, nodata=0, **UTM)
    asked = ("index", "scenes", "--run", "tiny", "--tile", "64", "--bands", "3,2,1", "--format", "json")
    result = cmpagl(*asked)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)[0]
    assert (made["images"], made["encoded"], made["scenes"], made["empty_tiles"]) == (8, 8, 1, 1)
    assert "9 tiles are cut out of 1 scene\n" in result.stderr
    again = json.loads(cmpagl("index", "scenes", "--run", "tiny", "--format", "json").stdout)[0]
    assert (again["encoded"], again["empty_tiles"]) == (0, 1)  # tiles and bands as the index was made with
    hits = json.loads(cmpagl("retrieve", "a square", "-k", "8", "--format", "json").stdout)
    assert {hit["crs"] for hit in hits} == {"EPSG:32633"}
    hit = next(hit for hit in hits if hit["window"] == [64, 128, 64, 64])
    assert hit["image_id"] == "a_20200102.tif#64,128"
    assert hit["bounds"] == [400_640, 4_998_080, 401_280, 4_998_720]
    assert "2020-01-02" in cmpagl("retrieve", "a square").stdout
    assert cmpagl("retrieve", "a square", "--gallery", "found.html").exit_code == 0
    assert (tmp_path / "found.html").read_text().count("data:image/jpeg") == 8
    like = ("retrieve", "--image", "scenes/a_20200102.tif", "-k", "1", "--format", "json")
    assert cmpagl(*like).exit_code == 0  # in the index's bands, without being told again
    told = cmpagl(*like, "--bands", "9,9,9")
    assert (told.exit_code, "there is no band 9" in told.stderr) == (3, True)
    told = cmpagl("retrieve", "a square", "--bands", "3,2,1")
    assert (told.exit_code, "say how the image of --image is read" in told.stderr) == (2, True)


def test_a_folder_whose_bands_are_unclear_says_which_option_answers(
    cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    write(tmp_path / "scenes" / "a.tif", ground(bands=5, side=64).astype(np.uint16))
    result = cmpagl("index", "scenes", "--run", "tiny")
    assert result.exit_code == 3, result.output
    assert "pass --bands 4,3,2 or a preset" in result.stderr


def test_a_scene_is_explained_in_the_bands_that_were_asked_for(cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ground(bands=5, side=64).astype(np.uint16))
    told = cmpagl("explain", path, "a square", "--run", tiny_run)
    assert (told.exit_code, "pass --bands 4,3,2 or a preset" in told.stderr) == (3, True), told.output
    told = cmpagl("explain", path, "a square", "--run", tiny_run, "--bands", "3,2,1")
    assert told.exit_code == 0, told.output
    assert (tmp_path / "explain.png").is_file()
