"""WebDataset shards as a source: what webdataset writes is prepared and trained on, hostile shards are refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets import shards
from cmpagl_core.datasets.loading import PairLoader, image_source
from cmpagl_core.datasets.prepare import PrepareResult, prepare
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.datasets.request import PrepareRequest
from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.ranks import Ranks
from cmpagl_core.recipe_data import DataPart
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.workspace import Workspace

HERE = Path(__file__).parent

Sample = dict[str, bytes]


def image(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def shard(path: Path, samples: Sequence[tuple[str, Sample]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for key, fields in samples:
            for kind, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def numbered(first: int, count: int) -> list[tuple[str, Sample]]:
    return [(f"{n:06}", {"png": image(n), "txt": f"field number {n}".encode()}) for n in range(first, first + count)]


def prepared(spec: str | Path, root: Path, **options: object) -> PrepareResult:
    request = PrepareRequest("shards", name="mine", shards=str(spec), fractions=(1.0, 0.0, 0.0), **options)  # type: ignore[arg-type]
    return prepare(request, Workspace(root), Silent())


def captions(data: PreparedDataset) -> dict[str, list[str]]:
    split = data.split("train")
    found: dict[str, list[str]] = {}
    for row, text in zip(split.caption_image.tolist(), split.captions, strict=True):
        found.setdefault(split.images[row].image_id, []).append(text)
    return found


def test_shards_that_webdataset_wrote_are_prepared_and_read_as_it_reads_them(tmp_path: Path) -> None:
    import webdataset

    written = {}
    for number in range(2):
        with webdataset.TarWriter(str(tmp_path / f"set-{number:02}.tar")) as writer:
            for n in range(3 * number, 3 * number + 3):
                written[f"scene_{n}"] = image(n)
                writer.write({"__key__": f"scene_{n}", "png": image(n), "txt": f"a  field,\n {n}"})
    result = prepared(tmp_path / "set-{00..01}.tar", tmp_path)
    data = open_prepared(result.root)
    assert captions(data) == {key: [f"a field, {key[-1]}"] for key in written}
    assert {one.image_id: one.path.read_bytes() for one in data.split("train").images} == written
    assert prepared(tmp_path / "set-{00..01}.tar", tmp_path).up_to_date


def test_names_are_cut_into_key_and_field_as_webdataset_cuts_them() -> None:
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "b/c.d/e.seg.png", "x/y.txt", "noending", "b/noending", "a.b/c", "é f.JPG", "a..jpg"):
        matched = shards._SAMPLE.fullmatch(name)
        assert (matched.groups() if matched else (None, None)) == base_plus_ext(name), name


def test_captions_and_images_have_any_of_the_usual_fields(tmp_path: Path) -> None:
    fields: dict[str, Sample] = {
        "json": {
            "json": json.dumps({"captions": ["one lake", "a lake"], "url": "x"}).encode(),
            "jpg": image(0, "JPEG"),
        },
        "img2dataset": {"jpg": image(1, "JPEG"), "json": b'{"caption": "two", "width": 8}', "txt": b"a road"},
        "rs5m": {"img_content": image(2, "JPEG"), "img_name": b"x.jpg", "caption": b"a harbor"},
        "rs5m_png": {"img_content": image(3), "caption": b"a port"},
        "deep/er/one": {"seg.png": image(4), "png": image(5), "txt": b"a forest"},
    }
    data = open_prepared(prepared(shard(tmp_path / "a.tar", list(fields.items())), tmp_path).root)
    texts = {"json": ["one lake", "a lake"], "img2dataset": ["a road"], "rs5m": ["a harbor"], "rs5m_png": ["a port"]}
    assert captions(data) == {**texts, "one": ["a forest"]}
    assert {one.path.suffix for one in data.split("train").images} == {".jpg", ".png"}


def test_a_prepare_that_failed_goes_on_at_the_first_missing_shard(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", numbered(0, 2))
    broken = shard(tmp_path / "1.tar", numbered(2, 2))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"1\.tar"):
        prepared(f"{tmp_path}/*.tar", tmp_path)
    folders = tmp_path / "data" / "mine" / "shards"
    assert [one.name for one in folders.iterdir()] == ["00000"]
    before = (folders / "00000").stat()
    broken.write_bytes(whole)
    assert prepared(f"{tmp_path}/*.tar", tmp_path).manifest.counts["train"].images == 4
    assert (folders / "00000").stat().st_ino == before.st_ino
    broken.unlink()
    assert prepared(f"{tmp_path}/*.tar", tmp_path).manifest.counts["train"].images == 2
    assert [one.name for one in folders.iterdir()] == ["00000"]


def test_the_same_key_in_two_shards_makes_two_images(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", [("a", {"png": image(0), "txt": b"a lake"})])
    shard(tmp_path / "1.tar", [("a", {"png": image(1), "txt": b"a road"})])
    assert prepared(tmp_path, tmp_path / "there").manifest.counts["train"].images == 2


def test_samples_without_image_or_caption_are_listed_or_left_out(tmp_path: Path) -> None:
    samples = [*numbered(0, 2), ("no_words", {"png": image(7)}), ("no_image", {"txt": b"a lake"})]
    path = shard(tmp_path / "a.tar", samples)
    with pytest.raises(DataError, match="bad caption: 1, missing: 1"):
        prepared(path, tmp_path)
    result = prepared(path, tmp_path, skip_missing=True)
    assert result.manifest.counts["train"].images == 2
    assert len(result.manifest.dropped) == 2


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([("../a", {"png": b"", "txt": b"x"})], "outside its folder"),
        ([("/a", {"png": b"", "txt": b"x"})], "outside its folder"),
        ([("a", {"png": b"", "jpg": b""})], "two images of the sample 'a'"),
        ([("a", {"txt": b"x" * (1 << 20 | 1)})], "a caption of over 1,048,576 bytes"),
        ([("a", {"txt": b"\xff"})], "is not UTF-8 text"),
        ([("a", {"json": b"[" * 100_000})], "is not UTF-8 JSON"),
        ([("a", {"json": b'{"caption": 3}'})], "a caption of a is not text"),
        (
            [("a", {"png": image(1), "txt": b"x"}), ("b", {"txt": b"y"}), ("a", {"png": image(2)})],
            "twice in one folder",
        ),
    ],
)
def test_hostile_shards_are_refused_and_leave_nothing(
    tmp_path: Path, samples: list[tuple[str, Sample]], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        prepared(shard(tmp_path / "a.tar", samples), tmp_path)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and "lock" not in path.name]


def test_links_and_what_is_no_shard_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match="contains a link or device"):
        prepared(tmp_path / "link.tar", tmp_path)
    with pytest.raises(DataError, match="there are no shards"):
        prepared(f"{tmp_path}/x*.tar", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        prepared(tmp_path / "x.tar", tmp_path)
    (tmp_path / "x.zip").touch()
    with pytest.raises(DataError, match="is not a shard"):
        prepared(tmp_path / "x.zip", tmp_path)
    for spec in ("pipe:touch x", "simplecache::s3://a/b.tar"):
        with pytest.raises(UsageError, match="neither a file nor a URL"):
            prepared(spec, tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        prepared("nothing://a/b.tar", tmp_path)


def test_training_from_shards_is_shared_by_processes_and_workers_and_resumes_at_a_sample(tmp_path: Path) -> None:
    """Every pair of an epoch is loaded once, by one process, also from the middle of the epoch on."""
    shard(tmp_path / "0.tar", numbered(0, 6))
    shard(tmp_path / "1.tar", numbered(6, 5))
    split = open_prepared(prepared(tmp_path, tmp_path / "there").root).split("train")
    recipe = parse_recipe("text_encoder: {size: tiny}", "tiny", ())
    cfg = DataPart(image_size_px=32, max_caption_tokens=8, workers=2)
    tokenizer = load_tokenizer(recipe.text_encoder, 8, split.captions)
    loader = PairLoader(split, cfg, 4, tokenizer, image_source(split, cfg), seed=3)
    parts = [loader.shared(Ranks(rank, 2)) for rank in range(2)]
    whole = list(loader.epoch(0))
    assert sorted(text for batch in whole for text in batch.captions) == sorted(split.captions)
    for first in (0, 2):
        for batch, *shared in zip(whole[first:], *(part.epoch(0, first=first) for part in parts), strict=True):
            assert batch.captions == tuple(text for one in shared for text in one.captions)
            assert torch.equal(batch.images, torch.cat([one.images for one in shared]))


def test_shards_in_an_object_store_are_prepared(tmp_path: Path) -> None:
    """moto's S3 server, with no connection allowed but to this machine (tests/offline)."""
    for number in range(2):
        shard(tmp_path / f"set-{number:03}.tar", numbered(3 * number, 3))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path), "NO_COLOR": "1"}
    command = [sys.executable, str(HERE / "s3_shards.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["first"]["counts"]["train"]["images"] == 6
    assert found["again"]["up_to_date"] is True
    assert found["glob"]["counts"]["train"]["images"] == 6
    assert found["missing"]["code"] == 3
    assert "s3://shards/nothing.tar cannot be read" in found["missing"]["error"]
