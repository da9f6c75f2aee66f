"""What is fuzzed: each target takes any bytes, and may refuse them by an error of errors.py alone.

`make fuzz` drives them with atheris (fuzz.py); test_fuzz.py feeds each its seeds and what was once found.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmpagl_core.errors import CmpaglError
from cmpagl_core.progress import Silent

Feed = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """make: prepares a folder and says what to feed. seeds: what mutations begin with."""

    name: str
    make: Callable[[Path], Feed]
    seeds: Callable[[], Sequence[bytes]]
    largest: int = 4096


def parts_of(content: bytes, kinds: Sequence[str]) -> tuple[str, bytes]:
    """The first byte chooses a kind, the rest is its content."""
    return kinds[content[0] % len(kinds)] if content else kinds[0], content[1:]


def _annotations(folder: Path) -> Feed:
    from cmpagl_core.datasets.sources import load_annotations

    (folder / "train_filename.txt").write_text("a.jpg\nb.jpg\n")

    def feed(content: bytes) -> None:
        name, rest = parts_of(content, ("a.json", "a.csv", "a.tsv", "train_caps.txt", "train_filename.txt"))
        (folder / name).write_bytes(rest)
        load_annotations(folder / name)

    return feed


def _recipe(folder: Path) -> Feed:
    from cmpagl_core.recipe_files import load_recipe

    path = folder / "a.yaml"

    def feed(content: bytes) -> None:
        recipe, _, overrides = content.partition(b"\0")
        path.write_bytes(recipe)
        load_recipe(path, overrides.decode("utf-8", "surrogateescape").split("\0") if overrides else ())

    return feed


def _tensors(folder: Path) -> Feed:
    from cmpagl_core.encoders.feature_set import load_feature_set

    path = folder / "a.safetensors"

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        loaded = load_feature_set(path)
        list(loaded.image_ids)

    return feed


def _small_index(folder: Path) -> Any:
    from cmpagl_core.imagery.reading import DEFAULT
    from cmpagl_core.search.gallery_source import folder_source
    from cmpagl_core.search.indexing import build_index
    from tests.conftest import FakeEncoder

    (folder / "images").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 9, 0)).save(folder / "images" / f"{number}.png")
    encoder: Any = FakeEncoder()
    return encoder, build_index(encoder, folder_source(folder / "images", DEFAULT), folder / "index", Silent()).index


def _index(folder: Path) -> Feed:
    from cmpagl_core.search.index import open_index
    from cmpagl_core.search.query import ItemQuery, TextQuery
    from cmpagl_core.search.searcher import Searcher

    encoder, index = _small_index(folder)
    marker = index.root / "index.json"
    as_built = marker.read_bytes()
    features = next(index.root.glob("features-*"))
    whole = features.read_bytes()

    def feed(content: bytes) -> None:
        what, rest = parts_of(content, ("marker", "features"))
        if what == "marker":
            features.write_bytes(whole)
            marker.write_bytes(_of_this_file(rest, features))
        else:
            features.write_bytes(rest)
            marker.write_bytes(_of_this_file(as_built, features))
        opened = open_index(index.root)
        searcher = Searcher(opened, lambda: encoder, Silent())
        for query in (TextQuery("a"), ItemQuery("0")):
            with suppress(CmpaglError):
                searcher.search([query], k=2)

    return feed


def _of_this_file(marker: bytes, features: Path) -> bytes:
    """A marker that lists the file that is there, where it still lists one: what comes after is to be reached."""
    from cmpagl_core.files import FileStamp

    stamp = FileStamp.of(features)
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        about = json.loads(marker)
        about["files"]["features"].update(
            name=features.name, size=stamp.size, mtime_ns=stamp.mtime_ns, sha256=stamp.sha256
        )
        return json.dumps(about).encode()
    return marker


def _archive(folder: Path) -> Feed:
    from cmpagl_core.datasets.archives import Bounds, unpack

    bounds = Bounds(files=50, unpacked_bytes=1 << 20, always_bytes=1 << 20)
    out = folder / "outside" / "out"

    def feed(content: bytes) -> None:
        name, rest = parts_of(content, ("a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"))
        shutil.rmtree(folder / "outside", ignore_errors=True)
        out.mkdir(parents=True)
        (folder / name).write_bytes(rest)
        try:
            unpack(folder / name, out, Silent(), bounds)
        finally:
            assert [path.name for path in (folder / "outside").iterdir()] == ["out"], "it wrote outside"
            assert not any(path.is_symlink() for path in out.rglob("*")), "it made a link"

    return feed


def _query(folder: Path) -> Feed:
    from cmpagl_core.search.filters import Filters, _touches_polygons, parse_filters
    from cmpagl_core.search.query import TextQuery, added_together, parse_part, read_queries

    _, index = _small_index(folder)
    corner = np.array([[[0.0, 0.0], [1, 0], [1, 1], [0, 1]]])
    geojson, queries = folder / "a.geojson", folder / "queries.txt"

    def feed(content: bytes) -> None:
        what, rest = parts_of(content, ("options", "geojson", "file"))
        if what == "geojson":
            geojson.write_bytes(rest)
            _touches_polygons(corner, geojson)
            return
        if what == "file":
            queries.write_bytes(rest)
            read_queries(queries)
            return
        texts = [*rest.decode("utf-8", "surrogateescape").split("\0"), "", "", "", "", "", "", "", ""]
        if not texts[0]:
            added_together(TextQuery(texts[1] or "a"), [parse_part(texts[2], 1), parse_part(texts[3], -1)])
            return
        box, near, within = (text or None for text in texts[1:4])
        filters = parse_filters(box, near, within, None, *texts[4:8])
        if filters != Filters(path=filters.path, scene=filters.scene):
            with suppress(CmpaglError):
                filters.mask(index)  # which has no places
        Filters(path=filters.path, scene=filters.scene).mask(index)

    return feed


def _stac(folder: Path) -> Feed:
    from cmpagl_core.search.paths import path_source

    Image.new("RGB", (8, 8)).save(folder / "a.png")
    item, catalogue = folder / "item.json", folder / "catalog.json"
    item_as_made = stac_item()
    catalogue_as_made = stac_catalogue()

    def feed(content: bytes) -> None:
        what, rest = parts_of(content, ("catalogue", "item"))
        catalogue.write_bytes(rest if what == "catalogue" else catalogue_as_made)
        item.write_bytes(rest if what == "item" else item_as_made)
        path_source([catalogue])

    return feed


def _http(folder: Path) -> Feed:
    import httpx2
    from starlette.testclient import TestClient

    from cmpagl_core.search.searcher import Searcher
    from cmpagl_core.serve.app import make_app
    from cmpagl_core.serve.guard import Access
    from cmpagl_core.session import Session
    from cmpagl_core.workspace import Workspace

    encoder, index = _small_index(folder)
    device: Any = None
    session = Session(Workspace(folder), Silent(), device)
    app = make_app(Searcher(index, lambda: encoder, Silent()), session, Access("127.0.0.1"))
    client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    client.__enter__()

    def feed(content: bytes) -> None:
        head, _, body = content.partition(b"\n")
        address, _, kind = head.partition(b" ")
        path, _, query = address.partition(b"?")
        url = httpx2.URL(
            "http://127.0.0.1", raw_path=_escaped(b"/" + path) + (b"?" + _escaped(query) if query else b"")
        )
        if body:
            answer = client.post(url, content=body, headers=[(b"Content-Type", kind or b"application/json")])
        else:
            answer = client.get(url)
        assert answer.status_code < 500, f"{answer.status_code}: {answer.text}"

    return feed


def _query_seeds() -> list[bytes]:
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    features = [{"type": "Feature", "geometry": square, "properties": {}}]
    return [
        b"\0\0airport\x002:storage tanks\x001.5:sea",
        b"\0x\x0012.4,55.6,12.7,55.8\x0012.5,55.7\x005km\x002024\x002024-05-31\0*.png\0[a]*",
        b"\1" + json.dumps(square).encode(),
        b"\1" + json.dumps({"type": "FeatureCollection", "features": features}).encode(),
        b'\2{"text": "a"}\n{"text": "b"}\n',
        b"\2an airport\na river\n",
    ]


_HTTP_SEEDS = (
    b"api/search?q=airport&k=3&offset=1&details=true",
    b"api/search?plus=2:a&minus=b&like=0&bbox=1,2,3,4&from=2024&path=*.png&min_score=0.1&diverse=true",
    b"api/items/0.png", b"api/thumbnails/1?size=64&around=2", b"api/explain?q=a",
    b"api/export application/json\n{\"format\": \"csv\", \"hits\": [{\"row\": 0, \"score\": 0.5}]}",
    b"api/search multipart/form-data; boundary=b\n--b\r\nContent-Disposition: form-data; name=\"image\"; "
    b"filename=\"a\"\r\n\r\n\xff\xd8\xff\r\n--b--\r\n",
    b"static/app.js", b"api/indexes", b"?q=a",
)  # fmt: skip


def _escaped(raw: bytes) -> bytes:
    return b"".join(bytes([one]) if 32 < one < 127 and one not in b'#"<>' else b"%%%02X" % one for one in raw)


def _tiff(folder: Path) -> Feed:
    from cmpagl_core.imagery.image_ref import ImageRef
    from cmpagl_core.imagery.reader import ReadImage, read_image

    path = folder / "a.tif"

    def feed(content: bytes) -> None:
        path.write_bytes(content)
        seen = read_image(ImageRef("a", path), at_least_px=8)
        assert isinstance(seen, ReadImage) or seen.why

    return feed


def stac_item() -> bytes:
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "a", "geometry": None, "bbox": None, "links": [],
        "properties": {"datetime": "2024-01-01T00:00:00Z"},
        "assets": {"a": {"href": "./a.png", "type": "image/png", "roles": ["data"]}},
    }  # fmt: skip
    return json.dumps(item).encode()


def stac_catalogue() -> bytes:
    links = [{"rel": "item", "href": "./item.json"}, {"rel": "root", "href": "./catalog.json"}]
    content = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "d", "links": links}
    return json.dumps(content).encode()


def _annotation_seeds() -> list[bytes]:
    image = {"filename": "a.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": "a field", "sentid": 0}]}
    lists = [{"image": "a.jpg", "caption": ["a field", "b"], "image_id": "a"}]
    texts = (json.dumps({"images": [image], "dataset": "x"}), "file,split,caption\na.jpg,train,a field\n",
             "file\tcaption\na.jpg\tb\n", "a field\nb\n", "a.jpg\n", json.dumps(lists))  # fmt: skip
    return [bytes([number % 5]) + text.encode() for number, text in enumerate(texts)]


def _recipe_seeds() -> list[bytes]:
    small = b"version: 1\ndata: {dataset: ucm, image_size_px: 224}\noptim:\n  lr: 1.0e-4  # a note\n"
    return [small, small + b"\0optim.lr=0.1\0data.image_size_px=64", b"losses:\n  itc: 'x'\n  itm: [1, 2]\n"]


def _tensor_seeds() -> list[bytes]:
    from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, save_feature_set

    info = FeatureInfo("run", "a" * 64, "ucm", "b" * 64, "test", "c" * 64, "as usual", "bf16")
    rows = np.eye(2, dtype=np.float32)
    hashes = ("a" * 64, "b" * 64)
    path = _scratch() / "a.safetensors"
    save_feature_set(path, FeatureSet(rows, rows, np.array([0, 1]), ("a", "b"), hashes, ("/a", "/b"), ("c", "d"), info))
    return [path.read_bytes()]


def _index_seeds() -> list[bytes]:
    _, index = _small_index(_scratch())
    features = next(index.root.glob("features-*"))
    return [b"\0" + (index.root / "index.json").read_bytes(), b"\1" + features.read_bytes()]


def _archive_seeds() -> list[bytes]:
    import gzip
    import tarfile

    zipped, tarred = BytesIO(), BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", "a caption")
        archive.writestr("c.png", b"\x89PNG")
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/b.txt", "c" * 120 + ".png"):
            info = tarfile.TarInfo(name)
            info.size = 9
            tar.addfile(info, BytesIO(b"a caption"))
    plain = tarred.getvalue()[:6144]
    return [b"\0" + zipped.getvalue(), b"\1" + plain, b"\2" + gzip.compress(plain)]


def _tiff_seeds() -> list[bytes]:
    import rasterio

    seeds = []
    for number, options in enumerate(
        (
            {"count": 1, "dtype": "uint8"},
            {"count": 3, "dtype": "uint16", "compress": "lzw", "interleave": "pixel"},
            {"count": 1, "dtype": "float32", "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
            {"count": 4, "dtype": "uint8", "photometric": "RGB", "nodata": 0, "bigtiff": "YES"},
        )
    ):
        path = _scratch() / f"{number}.tif"
        shape: dict[str, Any] = {"width": 16, "height": 16, "driver": "GTiff", "crs": "EPSG:32632"}
        shape["transform"] = rasterio.Affine(10, 0, 500000, 0, -10, 6000000)
        with rasterio.open(path, "w", **shape, **options) as file:
            file.write(np.arange(256 * int(str(options["count"]))).reshape(-1, 16, 16).astype(str(options["dtype"])))
        seeds.append(path.read_bytes())
    return seeds


def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="cmpagl-seeds-"))


TARGETS = {
    target.name: target
    for target in (
        Target("annotations", _annotations, _annotation_seeds),
        Target("recipe", _recipe, _recipe_seeds),
        Target("tensor file", _tensors, _tensor_seeds),
        Target("index", _index, _index_seeds, largest=8192),
        Target("archive", _archive, _archive_seeds, largest=8192),
        Target("query", _query, _query_seeds),
        Target("stac", _stac, lambda: [b"\0" + stac_catalogue(), b"\1" + stac_item()]),
        Target("http", _http, lambda: _HTTP_SEEDS),
        Target("tiff", _tiff, _tiff_seeds),
    )
}


def refuses_in_words(feed: Feed, content: bytes) -> None:
    """Feed: anything but a sentence of ours is an error."""
    with suppress(CmpaglError):
        feed(content)
