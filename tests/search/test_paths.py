"""Images named by folders, files, patterns and STAC catalogues; nothing is fetched, a dead end has its sentence."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.search.build import usual_name
from cmpagl_core.search.paths import path_source


@pytest.fixture
def folder(tiny_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


def names(source: Any) -> list[str]:
    return [entry.image.image_id for entry in source.entries]


def catalogue(root: Path, assets: dict[str, dict[str, Any]]) -> Path:
    """A static catalogue of one item."""
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "scene", "geometry": None, "links": [],
        "properties": {"datetime": "2024-05-01T00:00:00Z"}, "assets": assets, "stac_extensions": [],
    }  # fmt: skip
    whole = {
        "type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "d",
        "links": [{"rel": "item", "href": "./item.json"}, {"rel": "root", "href": "./catalog.json"}],
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "item.json").write_text(json.dumps(item))
    (root / "catalog.json").write_text(json.dumps(whole))
    return root / "catalog.json"


def test_one_folder_stays_a_folder_and_several_paths_are_files(folder: Path) -> None:
    one = path_source([folder])
    assert (one.kind, one.source, len(one.entries)) == ("folder", str(folder), 12)
    file = next(folder.rglob("scene_03.jpg"))
    both = path_source([file, folder / "north"])
    assert both.kind == "files"
    assert len(set(names(both))) == len(both.entries)
    assert both.entries == path_source([folder / "north", file]).entries


def test_a_pattern_takes_what_it_matches(folder: Path) -> None:
    (folder / "scene_00.txt").write_text("no image")
    found = path_source([folder / "**" / "scene_0[0-2]*"])
    assert sorted(Path(name).name for name in names(found)) == ["scene_00.jpg", "scene_01.jpg", "scene_02.jpg"]


@pytest.mark.parametrize(
    ("path", "said"),
    [("none", "does not exist"), ("*.gif", "matches no image"), ("a.json", "is not a STAC catalogue")],
)
def test_a_path_that_leads_nowhere_is_refused(folder: Path, path: str, said: str) -> None:
    (folder / "a.json").write_text("{}")
    with pytest.raises(DataError, match=said):
        path_source([folder / path])


def test_a_catalogues_images_are_found_and_no_address_is_opened(folder: Path) -> None:
    image = next(folder.rglob("scene_03.jpg"))
    shutil.copyfile(image, folder / "scene.jpg")
    shutil.copyfile(image, folder.parent / "outside.jpg")
    path = catalogue(
        folder,
        {
            "visual": {"href": "./scene.jpg", "type": "image/jpeg", "roles": ["data"]},
            "thumbnail": {"href": "./thumb.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
            "remote": {"href": "https://example.org/a.tif", "type": "image/tiff"},
            "gone": {"href": "./gone.tif", "type": "image/tiff"},
            "outside": {"href": "../outside.jpg", "type": "image/jpeg"},
            "absolute": {"href": "/etc/absolute.jpg", "type": "image/jpeg"},
            "long": {"href": f"./{'x' * 300}.jpg", "type": "image/jpeg"},
            "notes": {"href": "./notes.xml", "type": "application/xml"},
        },
    )
    found = path_source([path])
    assert names(found) == ["scene.jpg"]
    why = " ".join(one.why for one in found.left_out)
    assert "https://example.org/a.tif is not a local file, and nothing is fetched" in why
    assert "gone.tif" in why
    for name in ("outside", "absolute"):
        assert f"{name}.jpg is not below the folder of {path}" in why
    assert len(found.left_out) == 5


def test_a_catalogue_that_leads_outside_is_refused(folder: Path) -> None:
    path = catalogue(folder / "stac", {})
    content = json.loads(path.read_text())
    content["links"].append({"rel": "child", "href": "https://example.org/catalog.json"})
    path.write_text(json.dumps(content))
    with pytest.raises(CmpaglError, match="not a local file, and nothing is fetched"):
        path_source([path])
    content["links"][-1]["href"] = "../../catalog.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CmpaglError, match="is not below the folder of"):
        path_source([path])


def test_without_pystac_the_way_out_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = catalogue(folder, {})
    monkeypatch.setitem(sys.modules, "pystac", None)
    with pytest.raises(UsageError, match=r"pip install 'cmpagl\[geo\]'"):
        path_source([path])


@pytest.mark.parametrize(
    ("path", "name"), [("archive", "archive"), ("stac/catalog.json", "stac"), ("a/*.tif", "a"), ("a b", "a-b")]
)
def test_an_index_of_paths_has_a_usual_name(path: str, name: str) -> None:
    assert usual_name([Path(path)]) == name
