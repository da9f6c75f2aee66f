"""A run's image encoder, or its frozen backbone, as an ONNX file for ONNX Runtime: faster than torch in fp32 (ours).

Each thread runs a few images of its own. So the activations stay in the processor's caches, and no thread waits for
another one, which matters beside other busy processes. The file records which model it is of. torch is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.decode import decoded_batches, image_decoder
from cmpagl_core.encoders.encoder import EncodedBatch, Features
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import decoded_px, pixel_array

GRAPH_FORMAT = 1
GRAPHS_FOLDER = "onnx"  # in a workspace's cache
PRECISION = "fp32 by ONNX Runtime"
PIXELS, FEATURES, MAPS = "pixel_values", "features", "maps"  # names of a graph's input, and of its output

_IMAGES_PER_RUN = 2  # EfficientNet-Lite0 and 2 on one core: 60 images a second, 48 with 32 at once
IMAGES_AT_ONCE = 64  # whatever the number of threads, so that features do not depend on it
_FOUR_VIEWS = 4

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class GraphInfo:
    """What a graph computes: the run's weights, the side of its input, and whether its backbone's maps are rounded."""

    model_sha256: str
    image_size_px: int
    rounded: bool

    @property
    def words(self) -> dict[str, str]:
        """As the file's metadata."""
        return {"format": str(GRAPH_FORMAT), **{name: str(value) for name, value in asdict(self).items()}}

    @classmethod
    def read(cls, words: Mapping[str, str]) -> GraphInfo | None:
        """From a file's metadata; None where they are others."""
        size = words.get("image_size_px", "")
        if not size.isdecimal():
            return None
        info = cls(words.get("model_sha256", ""), int(size), words.get("rounded") == str(True))
        return info if info.words == words else None


def graph_path(cache_root: Path, model_sha256: str) -> Path:
    """The place of a model's graph in a workspace's cache."""
    return cache_root / GRAPHS_FOLDER / f"{model_sha256[:24]}.onnx"


def views_of(preprocessing: str) -> int:
    """How many views an index averages over, by the words that it stores."""
    return 2 * _FOUR_VIEWS if "tta d4" in preprocessing else 1


def runtime_is_installed() -> bool:
    """Whether ONNX Runtime is, which the extra `fast` installs."""
    return find_spec("onnxruntime") is not None


class _Graph:
    """An ONNX file and its session. threads: how many run it at once; as torch has them if None."""

    output: str

    def __init__(self, path: Path, model_sha256: str, threads: int | None = None) -> None:
        """Raises DataError for a file that is broken or of another model."""
        self._session, self._path = _session(path), path
        info = GraphInfo.read(self._session.get_modelmeta().custom_metadata_map)
        if info is None or info.model_sha256 != model_sha256:
            raise DataError(f"{path} is of another model or version", hint="delete it; it will be written again")
        self.info = info
        self._threads = threads or _cores()

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="onnx")

    def _run(self, pixel_values: Pixels, view: int) -> NDArray[np.float32]:
        turned = np.ascontiguousarray(_turned(pixel_values, view))
        try:
            found: NDArray[np.float32] = self._session.run([self.output], {PIXELS: turned})[0]
        except Exception as error:
            raise _refused(self._path, error) from error
        return found


class ImageGraph(_Graph):
    """The image encoder of a run."""

    output = FEATURES

    def features(self, pixel_values: Pixels, views: int) -> Features:
        """pixel_values: [B, 3, S, S]. Returns unit rows [B, D], averaged over the first views of the group D4."""
        with self._pool() as pool:
            return self._features(pool, pixel_values, views)

    def batches(self, images: Sequence[ImageRef], views: int) -> Generator[EncodedBatch, None, None]:
        """As `Encoder.encode_images`."""
        size_px = self.info.image_size_px
        decode = image_decoder(lambda image: pixel_array(image, size_px), decoded_px(size_px))
        decoded = decoded_batches(images, decode, IMAGES_AT_ONCE, stack=arrays_stacked)
        with self._pool() as pool, closing(decoded):
            for batch in decoded:
                features = self._features(pool, batch.pixel_values, views) if batch.rows else np.empty((0, 0), "<f4")
                yield EncodedBatch(features, batch.rows, batch.stamps, batch.broken)

    def _features(self, pool: ThreadPoolExecutor, pixel_values: Pixels, views: int) -> Features:
        averaged = np.concatenate(list(pool.map(lambda part: self._averaged(part, views), _few_each(pixel_values))))
        lengths = np.linalg.norm(averaged, axis=1, keepdims=True)
        return np.asarray(averaged / np.maximum(lengths, 1e-12), dtype=np.float32)

    def _averaged(self, pixel_values: Pixels, views: int) -> Features:
        seen = [self._run(pixel_values, view) for view in range(views)]
        return seen[0] if views == 1 else np.mean(seen, axis=0, dtype=np.float32)


class MapsGraph(_Graph):
    """A frozen backbone."""

    output = MAPS

    @contextmanager
    def running(self) -> Iterator[Callable[[Pixels, int], NDArray[np.float32]]]:
        """Threads, and what they compute: from pixel_values [B, 3, S, S] and a view of D4 the maps [B, values]."""
        with self._pool() as pool:

            def maps(pixel_values: Pixels, view: int) -> NDArray[np.float32]:
                return np.concatenate(list(pool.map(lambda part: self._run(part, view), _few_each(pixel_values))))

            yield maps


def _session(path: Path) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # what it logs below is raised too
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> DataError:
    """error: of any kind, since those of ONNX Runtime share no narrower class."""
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{path} cannot be run by ONNX Runtime ({reason})", hint="delete it")


def _cores() -> int:
    """Those that this process may use; fewer where OMP_NUM_THREADS says so, as for torch."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arrays_stacked(images: Sequence[Pixels]) -> Pixels:
    """[B, 3, S, S]; of length 0 where there are none."""
    return np.stack(images) if images else np.empty(0, dtype=np.float32)


def _few_each(pixel_values: Pixels) -> list[Pixels]:
    return [pixel_values[at : at + _IMAGES_PER_RUN] for at in range(0, len(pixel_values), _IMAGES_PER_RUN)]


def _turned(pixel_values: Pixels, view: int) -> Pixels:
    """As `augment.d4_transform`, without torch."""
    flipped = pixel_values[..., ::-1] if view >= _FOUR_VIEWS else pixel_values
    return np.rot90(flipped, view % _FOUR_VIEWS, (-2, -1))
