"""Artefacts of released versions open, or are refused with the way out; those of tomorrow are refused as such.

The archives beside this were written by make.py of their release. Add one for each; never write one again.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError
from cmpagl_core.files import read_json, write_json
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.search.index import open_index

VERSIONS = sorted(path.stem for path in Path(__file__).parent.glob("*.zip"))
REFUSED: dict[tuple[str, str], str] = {}  # version and kind: what its refusal must say
TOMORROW = 999


def _open_run(root: Path) -> Any:
    from cmpagl_core.runs import open_run

    return open_run(root)


OPEN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "data set": ("data/mine", open_prepared),
    "run": ("runs/tiny", _open_run),
    "index": ("indexes/folder", open_index),
    "feature set": ("features.safetensors", load_feature_set),
    "recipe": ("tiny.yaml", load_recipe),
}


def of_json(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        content = read_json(root / name)
        assert "format_version" in content
        write_json(root / name, {**content, "format_version": TOMORROW})

    return change


def of_tensors(path: Path) -> None:
    file = open_tensor_file(path)
    arrays = {name: array.copy() for name, array in file.arrays.items()}
    write_tensor_file(path, arrays, {**file.about, "format_version": TOMORROW})


def of_recipe(path: Path) -> None:
    path.write_text(f"version: {TOMORROW}\n{path.read_text()}")


MAKE_NEWER: dict[str, Callable[[Path], None]] = {
    "data set": of_json("manifest.json"),
    "run": of_json("run.json"),
    "index": of_json("index.json"),
    "feature set": of_tensors,
    "recipe": of_recipe,
}


@pytest.fixture(params=VERSIONS)
def artefacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    with zipfile.ZipFile(Path(__file__).parent / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return request.param, tmp_path


@pytest.mark.parametrize("kind", OPEN)
def test_what_a_release_wrote_opens_or_is_refused_with_the_way_out(kind: str, artefacts: tuple[str, Path]) -> None:
    version, root = artefacts
    name, opened = OPEN[kind]
    if (version, kind) not in REFUSED:
        opened(root / name)
        return
    with pytest.raises(CmpaglError, match=REFUSED[version, kind]):
        opened(root / name)


@pytest.mark.parametrize("kind", OPEN)
def test_what_tomorrow_will_write_is_refused_by_its_version(kind: str, artefacts: tuple[str, Path]) -> None:
    _, root = artefacts
    name, opened = OPEN[kind]
    MAKE_NEWER[kind](root / name)
    with pytest.raises(CmpaglError) as refused:
        opened(root / name)
    assert str(TOMORROW) in refused.value.message
    assert name in refused.value.message
    assert "update cmpagl" in (refused.value.hint or ""), str(refused.value)


def test_every_release_has_its_artefacts() -> None:
    assert VERSIONS == ["0.1"]
