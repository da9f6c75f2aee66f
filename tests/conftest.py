"""What every test stands on: no network, few threads, a workspace of its own, and the real data where it is."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings
from typer.testing import CliRunner, Result

from cmpagl_core.progress import Silent

REPOSITORY = Path(__file__).parent.parent

# Set before torch is imported, and passed on to the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: more threads only wait for each other
os.environ["COLUMNS"] = "80"
os.environ.pop("CMPAGL_WORKSPACE", None)
OFFLINE = str(Path(__file__).parent / "offline")  # keeps the processes that tests start from the network
sys.path.append(OFFLINE)  # which some tests hand on whole
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (OFFLINE, os.environ.get("PYTHONPATH"))))

# A background job is born with signals ignored, and so would be the commands that tests stop by them.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

settings.register_profile("cmpagl", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("cmpagl")


_CONNECT, _GETADDRINFO = socket.socket.connect, socket.getaddrinfo


def pytest_collection_finish() -> None:
    """Garbage is collected rarely, and never among what the imports left: that took 5 % of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("a test reached for the network")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection and every name look-up fails; Unix sockets stay, since worker processes use them."""

    def only_unix(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            _refuse()
        _CONNECT(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_unix)
    monkeypatch.setattr(socket.socket, "connect_ex", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)


@pytest.fixture
def this_machine(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test talk to a server of its own at 127.0.0.1."""

    def only_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
            _refuse()
        _CONNECT(self, address)

    def numbers_of(host: Any, *arguments: Any, **options: Any) -> Any:
        return _GETADDRINFO(host, *arguments, **options) if host == "127.0.0.1" else _refuse()

    monkeypatch.setattr(socket.socket, "connect", only_here)
    monkeypatch.setattr(socket, "getaddrinfo", numbers_of)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real images and captions beside the repository; the test is skipped without it."""
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
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve JPEG images of one colour field and one square each, in two folders: all look different."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
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


TINY_CLIP: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny open_clip model of random weights: its description `tiny-clip.json`, and `plain.pt`."""
    import json
    import warnings

    import torch

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, on import
        import open_clip
    open_clip.add_model_config(folder / "tiny-clip.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(open_clip.create_model("tiny-clip").eval().state_dict(), folder / "plain.pt")
    return folder


class Told(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


class FakeEncoder:
    """An Encoder that starts in no time: images by the colours of their quarters, texts by their words."""

    def __init__(self, name: str = "fake", preprocessing: str = "colours of quarters", precision: str = "fp32") -> None:
        from cmpagl_core.encoders.encoder import Fingerprint, Origin
        from cmpagl_core.files import sha256_text

        self.name, self.dim = name, 12
        self.fingerprint = Fingerprint(sha256_text(name), preprocessing, precision)
        self.origin = Origin("run", f"/nowhere/{name}")
        self.batch_size = 5
        self.images: list[Any] = []  # that it was asked for
        self.texts: list[str] = []

    def encode_images(self, images: Sequence[Any]) -> Iterator[Any]:
        import numpy as np

        from cmpagl_core.encoders.encoder import EncodedBatch
        from cmpagl_core.imagery.reader import ReadImage, read_image

        self.images += images
        for start in range(0, len(images), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(images)))
            seen = [(row, read_image(images[row])) for row in rows]
            read = [(row, one) for row, one in seen if isinstance(one, ReadImage)]
            features = [np.asarray(one.pixels.resize((2, 2)), dtype=np.float32).ravel() for _, one in read]
            yield EncodedBatch(
                self._unit(np.stack(features)) if read else np.empty((0, self.dim), dtype=np.float32),
                [row for row, _ in read],
                [one.stamp for _, one in read],
                [one for _, one in seen if not isinstance(one, ReadImage)],
            )

    def encode_texts(self, texts: Sequence[str]) -> Any:
        import zlib

        import numpy as np

        self.texts += texts
        words = [np.random.default_rng(zlib.crc32(f"{self.name} {text}".encode())) for text in texts]
        drawn = [generator.standard_normal(self.dim) for generator in words]
        return self._unit(np.array(drawn, dtype=np.float32).reshape(-1, self.dim))

    def _unit(self, rows: Any) -> Any:
        import numpy as np

        turned = np.roll(rows + 1, len(self.name), axis=1)  # other names, other features
        return turned / np.linalg.norm(turned, axis=1, keepdims=True)


@pytest.fixture
def fake_encoder() -> type[FakeEncoder]:
    """The class, so that a test can have several."""
    return FakeEncoder


@pytest.fixture(scope="session")
def tiny_prepared(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of the tiny images, two captions each; the first caption is shared by pairs of images."""
    import pandas as pd

    from cmpagl_core.datasets.manifest import Manifest, SplitCounts
    from cmpagl_core.files import sha256_file, write_json, write_text

    root = tmp_path_factory.mktemp("workspace") / "data" / "tiny"
    paths = sorted(tiny_images.rglob("*.jpg"), key=lambda path: path.name)
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    images = pd.DataFrame(
        [
            {"image_id": path.stem, "path": str(path), "split": split, "width": 80, "height": 80,
             "bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": sha256_file(path),
             "scene": path.parent.name}
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
        name="tiny", made_at="2024-01-01T00:00:00.000000+00:00", source="folder", layout="by hand", protocol="none",
        complete=True,
        counts={split: SplitCounts(images=1, captions=2, unique_captions=2) for split in ("train", "val", "test")},
        split_sha256={}, images_sha256="", sources=(), fingerprint="",
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
    from cmpagl_core.datasets.splits import selection_splits
    from cmpagl_core.evaluation.protocol import seen_of
    from cmpagl_core.models.bert import bert_shape
    from cmpagl_core.models.cmpagl import build_model
    from cmpagl_core.models.tokenizer import load_tokenizer
    from cmpagl_core.recipe_files import parse_recipe
    from cmpagl_core.runs import BestEpoch, RunInfo, current_code, current_versions, save_run

    recipe = parse_recipe(TINY_RECIPE, "the tiny recipe")
    prepared = open_prepared(tiny_prepared)
    captions = prepared.split("all").captions
    train, selection = selection_splits(prepared, recipe.data.selection)
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, captions)
    shape = bert_shape(recipe.text_encoder, tokenizer.vocab_size)
    model = build_model(recipe, tokenizer.vocab_size, text_shape=shape)
    root = tiny_prepared.parent.parent / "runs" / "tiny"
    info = RunInfo(
        name="tiny", dataset="tiny", dataset_root=str(tiny_prepared), manifest_sha256=prepared.manifest.sha256,
        train_sha256=train.sha256, selection_sha256=selection.sha256,
        recipe_name="tiny", recipe_sha256=recipe.sha256(), code=current_code(),
        versions=current_versions(), best=BestEpoch(epoch=1, mr=1.0), vocab_size=tokenizer.vocab_size,
        text_shape=shape.to_dict(), seed=0, epochs=1, parameters=1, elapsed_s=1.0, seconds_per_epoch=1.0,
        started_at="2024-01-01T00:00:00+00:00", device="cpu", threads=2, precision="fp32",
    )  # fmt: skip
    save_run(root, recipe, info, model.state_dict(), tokenizer.to_json(), seen_of(train, selection))
    return root


def rewrite_info(root: Path, **changes: object) -> None:
    """Change run.json of a run behind its back."""
    from cmpagl_core.files import read_json, write_json

    write_json(root / "run.json", {**read_json(root / "run.json"), **changes})
