"""SceneFile: an open GDAL file, read in pieces or completely, at reduced size if wanted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader
from rasterio.windows import Window as GdalWindow

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.bands import Layout, choose_bands
from cmpagl_core.imagery.chunks import Chunk, Chunks
from cmpagl_core.imagery.gdal import UNREADABLE, brief, gdal
from cmpagl_core.imagery.geo import geo_of
from cmpagl_core.imagery.handles import Handles
from cmpagl_core.imagery.image_ref import Geo, Window
from cmpagl_core.imagery.images import MAX_PIXELS
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.imagery.room import DECODING
from cmpagl_core.imagery.stretch import Planes, Rendering, Valid, choose_rendering, is_mask, render, valid_pixels

_SAMPLED_PIXELS = 1_000_000  # that percentiles are taken of
_DECODED_FOR_A_SAMPLE = 32_000_000  # pixels at most; where it would take more, some blocks are sampled
_SAMPLED_BLOCKS, _SAMPLE_WINDOW_PX = 12, 128  # across and down; a side of what is read of each
_BLOCK_OF_A_VRT = 1024
_STRIP_PIXELS = 1 << 22  # of the file, read at once
_BYTES_A_VALUE = 12  # a value as it is, as float32, whether it is valid, and as 8 bits


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece as RGB, and what share of its pixels are measurements."""

    pixels: Image.Image
    valid: float

    @property
    def is_flat(self) -> bool:
        """Whether all pixels are alike, as in a part that was filled."""
        return all(low == high for low, high in np.reshape(self.pixels.getextrema(), (-1, 2)).tolist())


class SceneFile:
    """An open file, for many threads."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is broken, of no known format, or of a kind that is not read."""
        self.path, self._handles = path, Handles(path)
        first = self._handles.first
        try:
            with gdal():
                self.width, self.height, self.driver = int(first[0].width), int(first[0].height), str(first[0].driver)
                self.layout = _layout(first)
                self.nodata: tuple[float | None, ...] = (
                    tuple(page.nodata for page in first) if len(first) > 1 else tuple(first[0].nodatavals)
                )
                self.geo: Geo = geo_of(path, first[0])
                self._block = _block(first[0])
                self._has_overviews = bool(first[0].overviews(1))
                bits = first[0].tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8")
                self._has_mask, self._palette = _has_mask(first[0]), _palette(first[0])
                # What numbers colours is no measurement, however few bits it has.
                self._bits = int(bits) if self._palette is None and bits.isdigit() and int(bits) > 0 else 8
        except UNREADABLE as error:
            self.close()
            raise DataError(f"{path} is a broken image ({brief(str(error))})") from error
        self._chunks = Chunks(self.width, self.height, self._block, self._decoded_chunk)
        if any("complex" in dtype for dtype in self.layout.dtypes):
            self.close()
            raise DataError(
                f"{path} has complex values, which cannot be shown as an image", hint="convert them to amplitude first"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._handles.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rendering(self, reading: Reading) -> Rendering:
        """How the file becomes RGB, by a sample of all of it. Raises DataError where that is not clear."""
        plan = choose_bands(self.path, self.layout, reading)
        wanted = (*plan.bands, *((plan.alpha,) if plan.alpha else ()))
        planes, valid = self._sample(wanted)
        alpha = plan.alpha if plan.alpha and is_mask(planes[-1]) else 0
        if plan.alpha:
            planes, valid = planes[:-1], valid[:-1] & (planes[-1] > 0 if alpha else True)
        return choose_rendering(plan, alpha, planes, valid, reading, self._bits)

    def read(self, window: Window, rendering: Rendering, at_least_px: int | None = None) -> Piece:
        """A piece. at_least_px: it may be read at a half, a third and so on, as long as both sides keep so many pixels.

        Raises DataError when it is not inside the file, or cannot be read.
        """
        whole = Window(0, 0, self.width, self.height)
        if not _inside(window, whole):
            raise DataError(f"{self.path} has {self.width} x {self.height} pixels, and {window} is not inside")
        factor = shrunk_by(window.width, window.height, at_least_px)
        if factor == 1 and window != whole and self._chunks.helps(window):
            with suppress(DataError):  # of another part of the chunk, maybe: then this one is read alone
                shared, count = self._chunks.read(window, rendering)
                return Piece(Image.fromarray(shared), count / (window.width * window.height))
        size = math.ceil(window.width / factor), math.ceil(window.height / factor)
        pixels, valid = np.empty((size[1], size[0], 3), dtype=np.uint8), 0
        strips = list(self._strips(window, factor))
        with DECODING.held():
            values = max(strip.width * strip.height for strip, _ in strips) // factor**2 * len(rendering.bands)
            DECODING.take(pixels.nbytes + _BYTES_A_VALUE * values)
            for strip, top in strips:
                height = math.ceil(strip.height / factor)
                planes, ok = self._values(strip, rendering, (height, size[0]), factor)
                pixels[top : top + height] = self._coloured(planes, ok, rendering)
                valid += int(np.count_nonzero(ok.any(axis=0)))
        return Piece(Image.fromarray(pixels), valid / (size[0] * size[1]))

    def _decoded_chunk(self, part: Window, rendering: Rendering) -> Chunk:
        planes, ok = self._values(part, rendering, (part.height, part.width), 1)
        valid: Valid = np.logical_or.reduce(ok, axis=0)
        return Chunk(self._coloured(planes, ok, rendering), None if valid.all() else valid)

    def _sample(self, bands: tuple[int, ...]) -> tuple[Planes, Valid]:
        """Values [B, H, W] of some bands from all over the file, and which of them are valid.

        Raises DataError when nothing can be read.
        """
        factor = max(1.0, math.sqrt(self.width * self.height / _SAMPLED_PIXELS))
        shape = max(1, round(self.height / factor)), max(1, round(self.width / factor))
        if self._decoded_for(shape) <= _DECODED_FOR_A_SAMPLE:
            with suppress(DataError):  # a block is broken: the others may do
                return self._raw(bands, Window(0, 0, self.width, self.height), shape, Resampling.nearest)
        return self._sample_of_blocks(bands)

    def _decoded_for(self, shape: tuple[int, int]) -> int:
        """How many pixels are decoded where every so many are read from all over the file."""
        if self._has_overviews:
            return shape[0] * shape[1]
        across, down = self._block
        columns, rows = math.ceil(self.width / across), math.ceil(self.height / down)
        return min(rows, shape[0]) * down * min(columns, shape[1]) * across

    def _sample_of_blocks(self, bands: tuple[int, ...]) -> tuple[Planes, Valid]:
        """As `_sample`, of a part of some blocks in a grid."""
        (across, lefts), (down, tops) = map(_spread, (self.width, self.height), self._block)
        found, last = [], None
        for top, left in itertools.product(tops, lefts):
            place = Window(min(left, self.width - across), min(top, self.height - down), across, down)
            try:
                found.append(self._raw(bands, place, (down, across), Resampling.nearest))
            except DataError as error:
                last = error
        if not found and last is not None:
            raise last
        planes, valid = zip(*found, strict=True)
        return np.concatenate(planes, axis=1), np.concatenate(valid, axis=1)

    def _strips(self, window: Window, factor: int) -> Iterator[tuple[Window, int]]:
        """A window from top to bottom, along the file's blocks, each with the row where it goes."""
        block = self._block[1]
        step = max(1, _STRIP_PIXELS // window.width // math.lcm(block, factor)) * math.lcm(block, factor)
        if step > window.height or step * window.width > 4 * _STRIP_PIXELS:
            step = max(1, _STRIP_PIXELS // window.width // factor) * factor
        for top in range(0, window.height, step):
            height = min(step, window.height - top)
            yield Window(window.left, window.top + top, window.width, height), top // factor

    def _values(
        self, window: Window, rendering: Rendering, shape: tuple[int, int], factor: int
    ) -> tuple[Planes, Valid]:
        wanted = (*rendering.bands, *((rendering.alpha,) if rendering.alpha else ()))
        if factor > 1 and any(self.layout.dtypes[band - 1].startswith("float") for band in wanted):
            whole = self._raw(wanted, window, (window.height, window.width), Resampling.nearest)
            planes, valid = _averaged(*whole, factor)  # GDAL would average what no header says is "no data"
        else:
            plain = factor == 1 or self._palette is not None
            planes, valid = self._raw(wanted, window, shape, Resampling.nearest if plain else Resampling.average)
        if rendering.alpha:
            return planes[:-1], valid[:-1] & (planes[-1] > 0)
        return planes, valid

    def _raw(
        self, bands: tuple[int, ...], window: Window, shape: tuple[int, int], how: Resampling
    ) -> tuple[Planes, Valid]:
        place = GdalWindow(window.left, window.top, window.width, window.height)
        kinds = {self.layout.dtypes[band - 1] for band in bands}
        options: dict[str, Any] = {"window": place, "resampling": how}
        if len(kinds) > 1:
            options["out_dtype"] = "float64"
        try:
            with self._handles.taken() as datasets:
                if len(datasets) > 1:
                    pages = [datasets[band - 1].read(1, out_shape=shape, **options) for band in bands]
                    planes: Planes = np.stack(pages)
                else:
                    planes = datasets[0].read(list(bands), out_shape=(len(bands), *shape), **options)
                options = {"window": place, "out_shape": shape, "resampling": Resampling.nearest}
                mask = datasets[0].read_masks(1, **options) if self._has_mask else None
        except UNREADABLE as error:
            where = f"{window.width} x {window.height} pixels at {window.left}, {window.top}"
            raise DataError(f"{self.path} is a broken image ({where}: {brief(str(error))})") from error
        valid = valid_pixels(planes, tuple(self.nodata[band - 1] for band in bands))
        return planes, valid if mask is None else valid & (mask > 0)

    def _coloured(self, planes: Planes, valid: Valid, rendering: Rendering) -> NDArray[np.uint8]:
        if self._palette is None or rendering.scale != "none":
            return render(planes, valid, rendering)
        coloured: NDArray[np.uint8] = self._palette[planes[0]]  # [H, W, 3]
        coloured[~valid[0]] = 0
        return coloured


def shrunk_by(width: int, height: int, at_least_px: int | None) -> int:
    """The whole number by which both sides may be divided: so that they keep enough pixels, and memory has room."""
    wanted = 1 if at_least_px is None else max(1, min(width, height) // at_least_px)
    return max(wanted, math.ceil(math.sqrt(width * height / MAX_PIXELS)))


def _spread(side: int, block: int) -> tuple[int, list[int]]:
    """How long some parts of a side are, and where they begin, from the first to the last."""
    part = min(_SAMPLE_WINDOW_PX, block, side)
    unit = block if side >= _SAMPLED_BLOCKS * block else part
    count = math.ceil(side / unit)
    some = min(count, _SAMPLED_BLOCKS)
    return part, [(count - 1) * number // max(1, some - 1) * unit for number in range(some)]


def _layout(datasets: list[DatasetReader]) -> Layout:
    first = datasets[0]
    if len(datasets) > 1:
        return Layout(
            tuple(page.dtypes[0] for page in datasets), ("gray",) * len(datasets), ("",) * len(datasets), len(datasets)
        )
    names = tuple(name or "" for name in first.descriptions)
    return Layout(tuple(first.dtypes), tuple(colour.name for colour in first.colorinterp), names)


def _block(first: DatasetReader) -> tuple[int, int]:
    """Width and height of what is decoded at once; of a VRT, of what it may be made of."""
    if first.driver == "VRT":
        return min(_BLOCK_OF_A_VRT, first.width), min(_BLOCK_OF_A_VRT, first.height)
    down, across = first.block_shapes[0]
    return int(across), int(down)


def _has_mask(first: DatasetReader) -> bool:
    """A mask of its own, beside bands and "no data"."""
    flags = first.mask_flag_enums[0]
    return MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags


def _palette(first: DatasetReader) -> NDArray[np.uint8] | None:
    """Colours [256, 3] of a file whose one band numbers them."""
    if first.count != 1 or first.colorinterp[0] != ColorInterp.palette or first.dtypes[0] != "uint8":
        return None
    colours: NDArray[np.uint8] = np.zeros((256, 3), dtype=np.uint8)
    for value, colour in first.colormap(1).items():
        colours[value] = colour[:3]
    return colours


def _averaged(planes: Planes, valid: Valid, factor: int) -> tuple[Planes, Valid]:
    """The mean of the valid values of each square; at the right and lower edge, of what is left of one."""
    rows, columns = (np.arange(0, length, factor) for length in planes.shape[1:])
    values = np.where(valid, planes, 0).astype(np.float64)
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=1), columns, axis=2)
    counts = np.add.reduceat(np.add.reduceat(valid.astype(np.int64), rows, axis=1), columns, axis=2)
    return (sums / np.maximum(counts, 1)).astype(planes.dtype), counts > 0


def _inside(window: Window, whole: Window) -> bool:
    return (
        0 <= window.left < window.left + window.width <= whole.width
        and 0 <= window.top < window.top + window.height <= whole.height
    )
