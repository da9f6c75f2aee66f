"""What every test stands on: no network, few threads, a workspace of its own, and the real data where it is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings
from typer.testing import CliRunner, Result

REPOSITORY = Path(__file__).parent.parent

# Set before torch is imported, and passed on to the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: more threads only wait for each other
os.environ["COLUMNS"] = "80"
os.environ.pop("CMPAGL_WORKSPACE", None)

settings.register_profile("cmpagl", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("cmpagl")


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("a test reached for the network")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection and every name look-up fails; Unix sockets stay, since worker processes use them."""
    connect = socket.socket.connect

    def only_unix(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            _refuse()
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_unix)
    monkeypatch.setattr(socket.socket, "connect_ex", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real pictures and captions beside the repository; the test is skipped without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


Cmpagl = Callable[..., Result]


@pytest.fixture
def cmpagl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cmpagl:
    """Call the command line in this process, in an empty workspace: `cmpagl("runs", "list").exit_code`."""
    from cmpagl_cli.app import app

    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def call(*arguments: str | Path) -> Result:
        return runner.invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve JPEG pictures of one colour field and one square each, in two folders: all look different."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = np.empty((80, 80, 3), dtype=np.uint8)
        pixels[:] = generator.integers(0, 256, 3)
        left, top = generator.integers(0, 40, 2)
        pixels[top : top + 40, left : left + 40] = generator.integers(0, 256, 3)
        place = folder / ("north" if number % 2 else "south")
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"scene_{number:02d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def tiny_prepared(tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of the tiny pictures, two captions each; the first caption is shared by pairs of pictures."""
    import pandas as pd

    from cmpagl_core.datasets.manifest import Manifest, SplitCounts
    from cmpagl_core.files import sha256_file, write_json, write_text

    root = tmp_path_factory.mktemp("workspace") / "data" / "tiny"
    paths = sorted(tiny_pictures.rglob("*.jpg"), key=lambda path: path.name)
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    images = pd.DataFrame(
        [
            {"image_id": path.stem, "path": str(path), "split": split, "width": 80, "height": 80,
             "sha256": sha256_file(path), "scene": path.parent.name}
            for path, split in zip(paths, splits, strict=True)
        ]
    )  # fmt: skip
    captions = pd.DataFrame(
        [
            {"caption_id": f"{path.stem}#{number}", "image_id": path.stem, "text": text}
            for row, path in enumerate(paths)
            for number, text in enumerate((f"a square of kind {row // 2}", f"field {row} with a bright square in it"))
        ]
    )
    for name, table in (("images", images), ("captions", captions)):
        write_text(root / f"{name}.csv", table.to_csv(index=False))
    manifest = Manifest(
        name="tiny", source="folder", layout="by hand", protocol="none", complete=True,
        counts={split: SplitCounts(images=1, captions=2, unique_captions=2) for split in ("train", "val", "test")},
        split_sha256={}, pictures_sha256="", sources=(), fingerprint="",
        files={f"{name}.csv": sha256_file(root / f"{name}.csv") for name in ("images", "captions")},
    )  # fmt: skip
    write_json(root / "manifest.json", manifest.model_dump(mode="json"))
    return root


TINY_RECIPE = """
data: {image_size_px: 32, max_caption_tokens: 16}
image_encoder: {size: custom, width: 16, depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8], window_size: 2}
text_encoder: {size: tiny}
losses: {embed_dim: 32}
train: {precision: fp32}
evaluate: {batch_size: 5}
"""


@pytest.fixture(scope="session")
def tiny_run(tiny_prepared: Path) -> Path:
    """A run of random weights on the tiny data set, in the same workspace, as a training would leave it."""
    from cmpagl_core.datasets.prepared import open_prepared
    from cmpagl_core.models.bert import bert_shape
    from cmpagl_core.models.cmpagl import build_model
    from cmpagl_core.models.tokenizer import load_tokenizer
    from cmpagl_core.recipe_files import parse_recipe
    from cmpagl_core.runs import Best, RunInfo, current_code, current_versions, save_run

    recipe = parse_recipe(TINY_RECIPE, "the tiny recipe")
    captions = open_prepared(tiny_prepared).split("all").captions
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, captions)
    shape = bert_shape(recipe.text_encoder, tokenizer.vocab_size)
    model = build_model(recipe, tokenizer.vocab_size, text_shape=shape)
    root = tiny_prepared.parent.parent / "runs" / "tiny"
    info = RunInfo(
        name="tiny", dataset="tiny", dataset_root=str(tiny_prepared), manifest_sha256="", train_sha256="",
        selection_sha256="", recipe_name="tiny", recipe_sha256=recipe.sha256(), code=current_code(),
        versions=current_versions(), best=Best(epoch=1, mr=1.0), smr=None, vocab_size=tokenizer.vocab_size,
        text_shape=shape.to_dict(), seed=0, epochs=1, parameters=1, elapsed_s=1.0, seconds_per_epoch=1.0,
        started_at="2024-01-01T00:00:00+00:00", device="cpu", threads=2,
    )  # fmt: skip
    save_run(root, recipe, info, model.state_dict(), tokenizer.to_json())
    return root
