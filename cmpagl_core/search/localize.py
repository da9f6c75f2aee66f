"""Where in a scene a text is: it is compared with tiles of several sizes, whose scores are spread out (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.encoder import Encoder
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import atomic_path
from cmpagl_core.imagery.image_ref import ImageRef, Scene, Window
from cmpagl_core.imagery.pieces import pieces_of, scene_of
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.tiles import Tiling
from cmpagl_core.progress import Progress
from cmpagl_core.search.query import Hit

DEFAULT_SIZES_PX = (128, 192, 256)
_OVERLAP = 0.5
_CELLS_A_TILE = 4  # of the smallest size, along a side


@dataclass(frozen=True, eq=False)
class Localised:
    """How well each part of a scene fits a text. heat: float32 [h, w], in standard deviations above the scene's mean.

    A cell is cell_px pixels wide and high. boxes: the best parts that do not overlap, the best first.
    """

    image: ImageRef
    scene: Scene
    text: str
    heat: NDArray[np.float32]
    cell_px: int
    boxes: tuple[Hit, ...]

    @property
    def peak(self) -> tuple[int, int]:
        """The pixel (column, row) at the middle of the best cell."""
        row, column = np.unravel_index(int(self.heat.argmax()), self.heat.shape)
        return int((column + 0.5) * self.cell_px), int((row + 0.5) * self.cell_px)


def localize(
    encoder: Encoder,
    path: Path,
    text: str,
    progress: Progress,
    sizes_px: Sequence[int] = DEFAULT_SIZES_PX,
    reading: Reading = DEFAULT,
    boxes: int = 5,
) -> Localised:
    """Compare a text with tiles of a scene. Raises DataError for a file that cannot be read, UsageError for no size."""
    if not sizes_px:
        raise UsageError("there is no tile size", hint="give --tile in pixels")
    image = ImageRef(path.name, path, reading=reading)
    scene = scene_of(image)
    feature = encoder.encode_texts([text])[0].astype(np.float64)
    sizes = sorted({min(size, scene.width, scene.height) for size in sizes_px})
    cell_px = max(1, sizes[0] // _CELLS_A_TILE)
    shape = -(-scene.height // cell_px), -(-scene.width // cell_px)
    heat = np.zeros(shape)
    smallest: list[Window] = []
    for size in sizes:
        windows = Tiling(size, overlap=_OVERLAP).windows(path, scene.width, scene.height, size)
        scores = _scores(encoder, pieces_of(image, scene, windows), feature, progress)
        heat += _spread(windows, scores, shape, cell_px)
        smallest = smallest or windows
    heat /= len(sizes)
    found = _boxes(image, scene, heat, cell_px, smallest, boxes)
    return Localised(image, scene, text, heat.astype(np.float32), cell_px, found)


def write_geotiff(found: Localised, out: Path) -> None:
    """The heat as a GeoTIFF of one band, in the scene's CRS where it has one. Raises CmpaglError on a full disk."""
    import rasterio
    from rasterio.transform import Affine

    transform = Affine.identity() if found.scene.geo.transform is None else Affine(*found.scene.geo.transform)
    profile = {
        "driver": "GTiff",
        "height": found.heat.shape[0],
        "width": found.heat.shape[1],
        "count": 1,
        "dtype": "float32",
        "compress": "deflate",
        "crs": found.scene.geo.crs or None,
        "transform": transform * Affine.scale(found.cell_px),
    }
    with atomic_path(out) as partial:
        try:
            with rasterio.open(partial, "w", **profile) as file:
                file.write(found.heat, 1)
                file.set_band_description(1, found.text[:200])
        except rasterio.errors.RasterioError as error:
            raise CmpaglError(f"{out} cannot be written ({' '.join(str(error).split())[:200]})") from error


def _scores(
    encoder: Encoder, pieces: Sequence[ImageRef], feature: NDArray[np.float64], progress: Progress
) -> NDArray[np.float64]:
    """Cosines of the pieces [N] in standard deviations above their mean; NaN for pieces with nothing to see."""
    scores = np.full(len(pieces), np.nan)
    with progress.task("encode tiles", len(pieces), "img") as advance:
        for batch in encoder.encode_images(pieces):
            scores[batch.rows] = batch.features.astype(np.float64) @ feature
            advance(len(batch.rows) + len(batch.broken))
    if np.isnan(scores).all():
        raise DataError(f"{pieces[0].path} shows nothing that can be compared", hint="see `cmpagl image`")
    spread = float(np.nanstd(scores))
    return np.asarray((scores - np.nanmean(scores)) / (spread or 1.0))


def _spread(
    windows: Sequence[Window], scores: NDArray[np.float64], shape: tuple[int, int], cell_px: int
) -> NDArray[np.float64]:
    """Each cell's mean of the tiles over it, weighted by how near their middle is. [h, w]"""
    total, weights = np.zeros(shape), np.zeros(shape)
    rows, columns = (np.asarray((np.arange(count) + 0.5) * cell_px, dtype=np.float64) for count in shape)
    for window, score in zip(windows, scores.tolist(), strict=True):
        if np.isnan(score):
            continue
        down = _nearness(rows, window.top, window.height)
        across = _nearness(columns, window.left, window.width)
        (r,), (c,) = np.nonzero(down), np.nonzero(across)
        part = slice(r[0], r[-1] + 1), slice(c[0], c[-1] + 1)
        weight = down[part[0], None] * across[None, part[1]]
        total[part] += score * weight
        weights[part] += weight
    lowest = float(np.nanmin(scores))
    return np.where(weights > 0, total / np.maximum(weights, 1e-12), lowest)


def _nearness(middles: NDArray[np.float64], start: int, length: int) -> NDArray[np.float64]:
    """1 at the middle of a tile's side, falling to 0 at its ends."""
    return np.asarray(np.clip(1 - np.abs(middles - start - length / 2) / (length / 2), 0, 1))


def _boxes(
    image: ImageRef, scene: Scene, heat: NDArray[np.float64], cell_px: int, windows: Sequence[Window], count: int
) -> tuple[Hit, ...]:
    """Tiles of the smallest size by their mean heat, the best first, without overlap."""

    def mean(window: Window) -> float:
        top, left = window.top // cell_px, window.left // cell_px
        bottom, right = -(-(window.top + window.height) // cell_px), -(-(window.left + window.width) // cell_px)
        return float(heat[top:bottom, left:right].mean())

    kept: list[tuple[float, Window]] = []
    for score, window in sorted(((mean(one), one) for one in windows), key=lambda pair: -pair[0]):
        if len(kept) < count and not any(_overlap(window, other) for _, other in kept):
            kept.append((score, window))
    pieces = pieces_of(image, scene, [window for _, window in kept])
    pairs = zip(pieces, (score for score, _ in kept), strict=True)
    return tuple(Hit(rank, piece, score, ()) for rank, (piece, score) in enumerate(pairs, start=1))


def _overlap(a: Window, b: Window) -> bool:
    across = a.left < b.left + b.width and b.left < a.left + a.width
    return across and a.top < b.top + b.height and b.top < a.top + a.height
