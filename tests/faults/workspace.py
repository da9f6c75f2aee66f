"""The small workspace and the commands that sweep.py disturbs."""

from __future__ import annotations

import csv
import os
import zipfile
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from tests.faults.sweep import Case

_IMAGES = 12
_SPLITS = ("train", "train", "train", "val", "test", "train")
_RECIPE = """
data: {image_size_px: 32, max_caption_tokens: 12}
image_encoder: {size: custom, width: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], window_size: 2}
text_encoder: {size: tiny}
losses: {embed_dim: 16}
optim: {lr: 2.0e-3}
train: {epochs: 1, batch_size: 4, precision: fp32}
evaluate: {itm_k: 2, batch_size: 4}
"""
_BACKBONE = """
data: {image_size_px: 32, max_caption_tokens: 12}
image_encoder:
  size: custom
  width: 8
  depths: [0, 0, 1, 1]
  num_heads: [1, 1, 2, 2]
  window_size: 2
  backbone: mobilenetv3_small_050
  backbone_strides: [16, 32]
text_encoder: {size: tiny}
losses: {embed_dim: 16, mlm: 0}
train: {epochs: 1, batch_size: 8, precision: fp32}
evaluate: {itm_k: 2, batch_size: 4}
"""

_PREPARE = ("prepare", "folder", "mine", "--name", "mine")
_TRAIN = ("train", "tiny.yaml", "--name", "tiny")
_INDEX = ("index", "--data", "mine", "--name", "all")
_FOLDER = ("index", "mine", "--name", "folder")
_CHANGES = (
    ("cp", "more/more00.png", "mine/new.png"),
    ("cp", "more/more01.png", "mine/mine01.png"),
    ("rm", "mine/mine02.png"),
)


def fill(root: Path) -> None:
    """Images with captions, as a folder and as an archive, two more folders of images, and recipes."""
    rng = np.random.default_rng(0)
    for name, count in (("mine", _IMAGES), ("more", 3)):
        (root / name).mkdir()
        for number in range(count):
            path = root / name / f"{name}{number:02d}.png"
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
            os.utime(path, ns=(0, 1_600_000_000_000_000_000 + number))
    with (root / "mine" / "captions.csv").open("w", newline="") as stream:
        rows = [
            (f"mine{number:02d}.png", _SPLITS[number % len(_SPLITS)], f"{word} of kind {number}")
            for number in range(_IMAGES)
            for word in ("a field", "a red roof")
        ]
        csv.writer(stream, lineterminator="\n").writerows([("file", "split", "caption"), *rows])
    os.utime(root / "mine" / "captions.csv", ns=(0, 1_600_000_000_000_000_000))
    with zipfile.ZipFile(root / "mine.zip", "w") as archive:
        for path in sorted((root / "mine").iterdir()):
            archive.write(path, path.name)
    os.utime(root / "mine.zip", ns=(0, 1_600_000_000_000_000_000))
    (root / "tiny.yaml").write_text(_RECIPE)
    (root / "backbone.yaml").write_text(_BACKBONE)


def _case(name: str, *command: str, before: tuple[tuple[str, ...], ...] = (), **more: object) -> Case:
    return Case(name, command, before, **more)  # type: ignore[arg-type]


_READY = (_PREPARE, _TRAIN)
CASES = {
    case.name: case
    for case in (
        _case("prepare", *_PREPARE),
        _case("prepare --copy", *_PREPARE, "--copy"),
        _case("prepare an archive", "prepare", "folder", "mine.zip", "--name", "mine"),
        _case("prepare again", *_PREPARE, "--seed", "3", "--copy", before=((*_PREPARE, "--copy"),)),
        _case("prepare synthetic", "prepare", "synthetic", "--count", "3", "--size", "64"),
        _case("train", *_TRAIN, before=(_PREPARE,), then=(("train", "--resume", "--name", "tiny"),), every_step=True),
        _case(
            "train with a cached backbone", "train", "backbone.yaml", "--name", "tiny", before=(_PREPARE,),
            then=(("train", "--resume", "--name", "tiny"),), every_step=True,
        ),
        _case("export", "export", "--split", "test", "--out", "out/features.safetensors", before=_READY),
        _case("evaluate", "evaluate", "--rerank", "smr+csls", before=_READY),
        _case("tune", "tune", "smr", "--split", "val", before=_READY),
        _case("index", *_INDEX, before=_READY),
        _case("index faiss", *_INDEX, "--store", "faiss", before=_READY),
        _case("index update", *_FOLDER, before=(*_READY, _FOLDER, *_CHANGES)),
        _case(
            "index update faiss", *_FOLDER, before=(*_READY, (*_FOLDER, "--store", "faiss"), *_CHANGES),
            answers=("retrieve", "a field", "--index", "folder", "--format", "json"),
        ),
        _case("ablate", "ablate", "tiny.yaml", "--data", "mine", "--no-smr", before=(_PREPARE,)),
    )
}  # fmt: skip


_FAKE = ("index-with-fake", "mine", "indexes/fake")
# Those that need neither torch nor a run.
SMALL_CASES = {
    **{name: CASES[name] for name in ("prepare", "prepare --copy", "prepare an archive")},
    "index update with a fake model": _case("index update with a fake model", *_FAKE, before=(_FAKE, *_CHANGES)),
    "serve an upload": _case("serve an upload", "ask-server", "indexes/fake", "more/more00.png", before=(_FAKE,)),
}


def index_with_fake(folder: str, root: str) -> NoReturn:
    """What `cmpagl index` does, with a model that starts in no time; ends as the command line would."""
    from cmpagl_core.errors import CmpaglError
    from cmpagl_core.progress import Silent
    from cmpagl_core.search.gallery_source import folder_source
    from cmpagl_core.search.indexing import build_index
    from tests.conftest import FakeEncoder

    try:
        build_index(FakeEncoder(), folder_source(Path(folder)), Path(root), Silent())
    except CmpaglError as error:
        print(f"error: {error}")
        raise SystemExit(int(error.exit_code)) from error
    raise SystemExit(0)


def ask_server(root: str, image: str) -> NoReturn:
    """What a server does with an image that a client sends; ends as its answer is."""
    from starlette.testclient import TestClient

    from cmpagl_core.errors import CmpaglError
    from cmpagl_core.progress import Silent
    from cmpagl_core.search.index import open_index
    from cmpagl_core.search.searcher import Searcher
    from cmpagl_core.serve.app import make_app
    from cmpagl_core.serve.guard import Access
    from cmpagl_core.session import Session
    from cmpagl_core.workspace import Workspace
    from tests.conftest import FakeEncoder

    session = Session(Workspace(Path()), Silent(), lambda: None)  # type: ignore[arg-type, return-value]
    try:
        index = open_index(Path(root))
    except CmpaglError as error:
        print(f"error: {error}")
        raise SystemExit(int(error.exit_code)) from error
    app = make_app(Searcher(index, FakeEncoder, Silent()), session, Access("testserver"))
    with Path(image).open("rb") as sent, TestClient(app) as client:
        answer = client.post("/api/search", params={"k": 3}, files={"image": sent})
    print(answer.text)
    raise SystemExit(0 if answer.status_code == 200 and len(answer.json()["hits"]) == 3 else 1)


def warm_up(whole: bool) -> None:
    """Import once what the forks need; whole: what needs torch, too."""
    import pandas  # noqa: F401

    import cmpagl_core.datasets.building
    import cmpagl_core.search.indexing
    import cmpagl_core.serve.app
    import tests.conftest  # noqa: F401

    if not whole:
        return
    import faiss  # noqa: F401
    import matplotlib.pyplot  # noqa: F401  # ICN: only to have it imported
    import rasterio  # noqa: F401
    import timm  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import cmpagl_core.ablation.study
    import cmpagl_core.evaluation.evaluate
    import cmpagl_core.search.build
    import cmpagl_core.training.start  # noqa: F401

    torch.set_num_threads(1)
