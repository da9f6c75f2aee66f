"""Evaluations and logs that were tampered with: `compare` and `report` name what is wrong, or show what is left."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.errors import ExitCode
from cmpagl_core.files import read_json, sha256_file, write_json
from cmpagl_core.progress import Silent
from cmpagl_core.training.curves import draw_curves

Told = Callable[..., str]


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run that was evaluated once; not to be changed."""
    from typer.testing import CliRunner

    from cmpagl_cli.app import app

    workspace = tmp_path_factory.mktemp("evaluated")
    for kind in ("data", "runs"):
        shutil.copytree(tiny_run.parent.parent / kind / "tiny", workspace / kind / "tiny")
    assert CliRunner().invoke(app, ["--workspace", str(workspace), "evaluate", "--split", "test"]).exit_code == 0
    return workspace


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """The run of a copy of it, in the current folder."""
    for kind in ("data", "runs"):
        shutil.copytree(evaluated / kind, tmp_path / kind)
    return tmp_path / "runs" / "tiny"


def evaluation(run: Path) -> Path:
    return next((run / "evaluations").glob("*.json"))


def first_row(content: dict[str, Any]) -> dict[str, Any]:
    return content["rows"][0]  # type: ignore[no-any-return]


def emptied(content: dict[str, Any]) -> None:
    content["rows"] = []


ROWS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no rows": emptied,
    "infinity": lambda content: first_row(content).update(mr=float("inf")),
    "not a number": lambda content: first_row(content).update(mr=float("nan")),
    "a huge number": lambda content: first_row(content).update(mr=1e308),
    "a negative number": lambda content: first_row(content)["i2t"].update(r1=-1e300),
    "a huge interval": lambda content: first_row(content)["ci95"].update(mr=[0.0, 1e300]),
    "thousands of digits": lambda content: first_row(content).update(queries={"i2t": 10**4000}),
    "no stamp": lambda content: content.pop("stamp"),
    "a list for a stamp": lambda content: content.update(stamp=[]),
    "an unknown stage": lambda content: first_row(content).update(stage="cosine\x00"),
}


@pytest.mark.parametrize("change", ROWS.values(), ids=ROWS)
def test_a_tampered_evaluation_is_named(change: Callable[[dict[str, Any]], object], told: Told, run: Path) -> None:
    path = evaluation(run)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    assert path.name.partition(".")[0] in told("compare", path, path, code=ExitCode.DATA)
    told("report", code=ExitCode.DONE)  # evaluates again


@pytest.mark.parametrize("text", ["", "[" * 100_000, "1e999", "\xff", '{"format_version": Infinity}', "null"])
def test_an_evaluation_that_is_none_is_named(text: str, told: Told, run: Path) -> None:
    evaluation(run).write_bytes(text.encode("latin-1"))
    path = evaluation(run)
    assert path.name.partition(".")[0] in told("compare", path, path, code=ExitCode.DATA)


def resaved(path: Path, **changes: Any) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = next(name for name in arrays if name.endswith(".i2t_rank"))
    hits = next(name for name in arrays if name.endswith(".t2i_hits"))
    for key, change in changes.items():
        target = {"rank": name, "hits": hits}.get(key, key)
        arrays[target] = change(arrays[target])
    np.savez(path, **arrays)


def bomb(path: Path) -> None:
    """Eight gigabytes of zeros in eight megabytes."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 30,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("image_ids.npy", head.getvalue())
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.index(mark) + offset
        content[place : place + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(bytes(content))


ARRAYS: dict[str, Callable[[Path], object]] = {
    "infinite ranks": lambda path: resaved(path, rank=lambda ranks: ranks + np.inf),
    "huge ranks": lambda path: resaved(path, rank=lambda ranks: ranks * 1e300),
    "negative hits": lambda path: resaved(path, hits=lambda hits: -1 - hits),
    "complex hits": lambda path: resaved(path, hits=lambda hits: hits + 1j),
    "words for hits": lambda path: resaved(path, hits=lambda hits: hits.astype(str)),
    "no images": lambda path: resaved(path, image_ids=lambda ids: ids[:0]),
    "owners out of range": lambda path: resaved(path, caption_image=lambda owners: owners + 1000),
    "nothing": lambda path: path.write_bytes(b""),
    "a size that it has not": bomb,
}


@pytest.mark.parametrize("spoil", ARRAYS.values(), ids=ARRAYS)
def test_tampered_results_of_queries_are_named(spoil: Callable[[Path], object], told: Told, run: Path) -> None:
    kept = evaluation(run)
    spoil(kept.with_suffix(".npz"))
    assert "belong to two different evaluations" in told("compare", kept, kept, code=ExitCode.MISMATCH)
    write_json(kept, read_json(kept) | {"arrays_sha256": sha256_file(kept.with_suffix(".npz"))})
    told("compare", kept, kept, code=ExitCode.DATA)


LOGS = {
    "deep nesting": "[" * 100_000,
    "infinity": '{"event": "epoch", "epoch": 1, "loss": Infinity}',
    "a number out of range": '{"event": "epoch", "epoch": 1, "loss": 1e999}',
    "huge numbers": '{"event": "epoch", "epoch": 1, "loss": 1e308}\n{"event": "epoch", "epoch": 2, "loss": -1e308}',
    "a huge epoch": '{"event": "epoch", "epoch": 1e308, "loss": 1}\n{"event": "epoch", "epoch": -1e308, "loss": 2}',
    "thousands of digits": f'{{"event": "epoch", "epoch": {"9" * 4000}, "loss": {"9" * 4000}}}',
    "other kinds": '{"event": "epoch", "epoch": [], "loss": {}}\n{"event": "validation", "epoch": "x", "mr": null}',
    "no event": "[]",
    "steps of nothing": '{"event": "step"}\n{"event": "warning"}\n{"event": "validation"}',
    "no text": "\xff\xfe",
    "an empty line": "\n\n",
}


@pytest.mark.parametrize("text", LOGS.values(), ids=LOGS)
def test_a_tampered_log_costs_the_curves_alone(text: str, told: Told, run: Path) -> None:
    (run / "log.jsonl").write_bytes(text.encode("latin-1"))
    if text in (
        LOGS["deep nesting"],
        LOGS["huge numbers"],
        LOGS["no text"],
    ):  # of the rest, curves alone
        told("report", code=ExitCode.DONE)
        assert (run.parent.parent / "report.html").is_file()
    pytest.importorskip("matplotlib")
    draw_curves(run, Silent())
