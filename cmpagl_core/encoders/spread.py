"""Images of one encoder encoded by many workers, in shards of whole batches (ours).

A worker builds the encoder itself, from the place of its run or checkpoint, and refuses to encode if its fingerprint is
not that of the process that asked. Shards are whole batches of the encoder, so that features do not depend on how many
workers there are. Shards and results are text and bytes: whatever starts workers (an `Engine`) needs to know no more.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from cmpagl_core import __version__
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encode import forward_pass
from cmpagl_core.encoders.encoder import EncodedBatch, Encoder, Fingerprint, require_one_row_each
from cmpagl_core.encoders.run_graph import UseOfOnnx
from cmpagl_core.errors import CmpaglError, ExitCode, MismatchError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.scene_json import images_of_json, images_to_json
from cmpagl_core.imagery.stamps import Broken
from cmpagl_core.progress import Silent
from cmpagl_core.runs import open_run

_IMAGES_PER_SHARD = 256
_AGAIN = "run the same command again: what is finished is kept"


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker needs to build an encoder. kind, source: as in Origin; place: a workspace's cache, "" for none."""

    kind: Literal["run", "open_clip"]
    source: str
    tta: Literal["none", "d4"] | None
    rounded: bool
    by_onnx: bool
    cache: str
    device: str
    fingerprint: Fingerprint
    version: str = __version__

    @classmethod
    def of(cls, encoder: Encoder, device: str) -> WorkerOrder:
        """The order for an encoder; device: the kind of device, cpu or cuda."""
        origin, wanted = encoder.origin, encoder.fingerprint
        if not isinstance(encoder, CmpaglEncoder):
            return cls(origin.kind, origin.source, None, False, False, "", device, wanted)
        cache = "" if encoder.cache_root is None else str(encoder.cache_root.absolute())
        return cls(
            origin.kind, origin.source, encoder.run.recipe.evaluate.tta, encoder.rounded, encoder.graph is not None,
            cache, device, wanted,
        )  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> WorkerOrder:
        """From the text of another process of the same version. Raises MismatchError for another one."""
        content: Any = json.loads(text)
        if content.get("version") != __version__:
            raise MismatchError(
                f"a worker has cmpagl {__version__}, and {content.get('version')} asked it to encode",
                hint="install the same cmpagl on every machine",
            )
        return cls(**content | {"fingerprint": Fingerprint(**content["fingerprint"])})

    def __str__(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class ShardResult:
    """A shard's features as bytes of float32, and everything else as JSON."""

    about: str
    features: bytes


class Engine(Protocol):
    """Whatever starts workers (`ShardWorker`) and hands each shard to one of them, again if that one is lost."""

    def encode(self, order: str, shards: Sequence[str]) -> Generator[ShardResult, None, None]:
        """The result of each shard, in any order, some twice at worst. Raises CmpaglError if it cannot go on."""


class ShardWorker:
    """Encodes shards with the encoder of an order, which is built with the first one."""

    def __init__(self, order: str) -> None:
        self._order = order

    def __call__(self, shard: str) -> ShardResult:
        """A shard's result; what a user can put right is returned as one too, since engines wrap what is raised."""
        try:
            return _encoded(self._encoder, shard)
        except CmpaglError as error:
            said = {"error": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}
            return ShardResult(json.dumps(said), b"")

    @cached_property
    def _encoder(self) -> Encoder:
        return ordered_encoder(WorkerOrder.parse(self._order))


def ordered_encoder(order: WorkerOrder) -> Encoder:
    """The encoder of an order. Raises MismatchError if this machine would give other features, and DataError if the
    run or checkpoint is not here."""
    device = torch.device(order.device)
    if order.kind == "open_clip":
        from cmpagl_core.encoders.open_clip import ClipOptions, open_clip_encoder

        encoder: Encoder = open_clip_encoder(
            f"open_clip:{order.source}", Silent(), device, ClipOptions(as_indexed=True)
        )
    else:
        cache = Path(order.cache) if order.cache else None
        onnx: UseOfOnnx = "kept" if order.by_onnx else "never"
        run = CmpaglEncoder(open_run(Path(order.source)), Silent(), device, cache, order.rounded, onnx)
        encoder = run if order.tta is None else run.with_tta(order.tta)
    _require_same(encoder.fingerprint, order.fingerprint, order.source)
    return encoder


def _require_same(found: Fingerprint, wanted: Fingerprint, source: str) -> None:
    for part, value in asdict(wanted).items():
        if asdict(found)[part] != value:
            raise MismatchError(
                f"a worker's encoder of {source} has {part} {asdict(found)[part]!r}, and {value!r} is asked for",
                hint="the workers need the same files, packages and kind of processor as this machine",
            )


class SpreadImages:
    """Encodes images as an encoder does, by the workers of an engine. device: the workers' kind, cpu or cuda."""

    def __init__(
        self, encoder: Encoder, engine: Engine, device: str, images_per_shard: int = _IMAGES_PER_SHARD
    ) -> None:
        self._encoder, self._engine, self._device = encoder, engine, device
        batch = encoder.batch_size
        self._per_shard = max(images_per_shard // batch, 1) * batch

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        """As `Encoder.encode_images`. What a training left in the cache is taken from there, by this process.

        Raises CmpaglError, with the exit code of its kind, for what a worker could not do.
        """
        if isinstance(self._encoder, CmpaglEncoder):
            yield from self._encoder.encode_by(images, self._spread)
        else:
            yield from self._spread(images)

    def _spread(self, images: Sequence[ImageRef]) -> Iterator[EncodedBatch]:
        starts = range(0, len(images), self._per_shard)
        shards = [_shard(number, images[start : start + self._per_shard]) for number, start in enumerate(starts)]
        missing = set(range(len(shards)))
        order = str(WorkerOrder.of(self._encoder, self._device))
        with closing(self._engine.encode(order, shards)) as results:
            for result in results:
                about = json.loads(result.about)
                if "error" in about:
                    raise _worker_error(about)
                if about["shard"] in missing:  # a worker that was lost may have been done
                    missing.remove(about["shard"])
                    yield self._batch(images, about, result.features)
        if missing:
            raise CmpaglError(f"{len(missing):,} of {len(shards):,} shards were not encoded", hint=_AGAIN)

    def _batch(self, images: Sequence[ImageRef], about: Any, features: bytes) -> EncodedBatch:
        start = about["shard"] * self._per_shard
        count = min(self._per_shard, len(images) - start)
        rows, broken_rows = about["rows"], [one["row"] for one in about["broken"]]
        require_one_row_each([*rows, *broken_rows], count)
        return EncodedBatch(
            np.frombuffer(features, dtype="<f4").reshape(len(rows), -1) if rows else np.empty((0, 0), dtype=np.float32),
            [start + row for row in rows],
            [FileStamp(*stamp) for stamp in about["stamps"]],
            [_broken(images[start + one["row"]], one) for one in about["broken"]],
        )


def _shard(number: int, images: Sequence[ImageRef]) -> str:
    return json.dumps({"shard": number, **images_to_json(images)})


def _encoded(encoder: Encoder, shard: str) -> ShardResult:
    """Encode a shard. Its rows are those of its own images."""
    content: Any = json.loads(shard)
    images = images_of_json(content)
    row_of = {image: row for row, image in enumerate(images)}
    blocks: list[bytes] = []
    about: dict[str, Any] = {"shard": content["shard"], "rows": [], "stamps": [], "broken": []}
    for batch in _batches(encoder, images):
        blocks.append(np.ascontiguousarray(batch.features, dtype="<f4").tobytes())
        about["rows"] += batch.rows
        about["stamps"] += [(stamp.size, stamp.mtime_ns, stamp.sha256) for stamp in batch.stamps]
        about["broken"] += [{"row": row_of[one.image], **_said(one)} for one in batch.broken]
    return ShardResult(json.dumps(about), b"".join(blocks))


def _batches(encoder: Encoder, images: Sequence[ImageRef]) -> Iterator[EncodedBatch]:
    if not isinstance(encoder, CmpaglEncoder):
        yield from encoder.encode_images(images)
    elif encoder.graph is not None:
        yield from encoder.encode_files(images)
    else:
        with forward_pass(encoder.loaded):
            yield from encoder.encode_files(images)


def _said(broken: Broken) -> dict[str, Any]:
    stamp = None if broken.stamp is None else list(asdict(broken.stamp).values())
    return {"why": broken.why, "stamp": stamp, "empty": broken.empty}


def _broken(image: ImageRef, said: Any) -> Broken:
    return Broken(image, said["why"], None if said["stamp"] is None else FileStamp(*said["stamp"]), said["empty"])


def _worker_error(about: Any) -> CmpaglError:
    error = CmpaglError(about["error"], hint=about["hint"])
    error.exit_code = ExitCode(about["exit_code"])
    return error
