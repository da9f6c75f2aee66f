"""Finds images that show the same, though their files differ: candidates by perceptual hash, confirmed by alignment.

A hash of 64 bits of each image finds candidates in any of the eight flips and rotations (Zauner's pHash, by ImageHash).
Whether a candidate shows the same place is decided by phase correlation, which is 1 for equal images, still high after
a shift, another exposure or compression, and near 0 for two places of one kind, however alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cmpagl_core.errors import UsageError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reader import open_ref
from cmpagl_core.progress import Progress

DEFAULT_MOST_BITS = 10
LEAST_ALIGNMENT = (
    0.35  # within 10 bits, RSICD's pairs of one place have 0.36 and more, pairs of two places at most 0.31
)
MOST_CANDIDATES = 100_000

_TURNS: tuple[Image.Transpose | None, ...] = (None, *Image.Transpose)
_INVERSE = {"rotate 90": "rotate 270", "rotate 270": "rotate 90"}  # every other turn is its own
_HASHED_PX, _DECODED_PX, _ALIGNED_PX = 32, 64, 128
_LEAST_CONTRAST = 2.0  # standard deviation of grey values, below which a hash is noise
_BAND = 0.35  # cycles per pixel: finer detail does not survive JPEG
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 64, 65_536
_MOST_THREADS = 8
_KEPT_SPECTRA = 512  # 128 KiB each

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class NearPair:
    """Two images by row, the bits in which their hashes differ, and how well they align.

    turn: how the second is turned to look like the first, as in "rotate 90"; "" if it is not.
    """

    first: int
    second: int
    bits: int
    turn: str
    alignment: float

    def swapped(self) -> NearPair:
        """The same pair, the second first."""
        turn = _INVERSE.get(self.turn, self.turn)
        return replace(self, first=self.second, second=self.first, turn=turn)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Rows of pairs with similar hashes, the nearest first, and how many more were not kept."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    bits: NDArray[np.uint8]
    turn: NDArray[np.uint8]
    left_out: int


def near_pairs(
    images: Sequence[ImageRef],
    contents: Sequence[str],
    within: int,
    progress: Progress,
    most_bits: int = DEFAULT_MOST_BITS,
) -> list[NearPair]:
    """Pairs of images with other content that show the same, of which the first is among the first `within` images.

    contents: equal for images with the same pixels, which are no pairs here. most_bits: of 64, in which hashes differ.
    Raises DataError for an unreadable image, UsageError without ImageHash.
    """
    hashes, usable = _hashed(images, progress)
    found = candidates(hashes, usable, contents, within, most_bits, progress)
    if found.left_out:
        progress.say(
            f"too many images look alike: of {len(found.first) + found.left_out:,} pairs the {len(found.first):,} "
            "nearest are compared"
        )
    spectra = lru_cache(_KEPT_SPECTRA)(lambda row, turn: _spectrum(images[row], _TURNS[turn]))
    pairs = []
    with progress.task("comparing images", len(found.first), "pair") as advance:
        rows = zip(found.first.tolist(), found.second.tolist(), found.bits.tolist(), found.turn.tolist(), strict=True)
        for first, second, bits, turn in rows:
            aligned = _alignment(spectra(first, 0), spectra(second, turn))
            if aligned >= LEAST_ALIGNMENT:
                pairs.append(NearPair(first, second, bits, _turn_name(turn), aligned))
            advance(1)
    return pairs


def candidates(
    hashes: Hashes,
    usable: NDArray[np.bool_],
    contents: Sequence[str],
    within: int,
    most_bits: int,
    progress: Progress,
    most: int = MOST_CANDIDATES,
) -> Candidates:
    """Pairs of rows whose hashes differ in at most `most_bits`, in any turn; see `near_pairs`.

    hashes: [N, 8], of each turn. usable: [N]. Blocks of rows are compared, so memory is bounded.
    """
    content = np.unique(np.asarray(contents, dtype=np.str_), return_inverse=True)[1]
    kept = np.empty((4, 0), dtype=np.int64)
    left_out = 0
    with progress.task("comparing hashes", within, "img") as advance:
        for start in range(0, within, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, within)
            blocks = [kept]
            for left in range(start, len(hashes), _COLUMNS_AT_ONCE):
                right = min(left + _COLUMNS_AT_ONCE, len(hashes))
                bits, turn = _nearest_turn(hashes[start:stop], hashes[left:right])
                rows, columns = np.nonzero(bits <= most_bits)
                first, second = rows + start, columns + left
                fits = (first < second) & usable[first] & usable[second] & (content[first] != content[second])
                blocks.append(np.stack([first, second, bits[rows, columns], turn[rows, columns]])[:, fits])
            kept = np.concatenate(blocks, axis=1)
            kept = kept[:, np.lexsort((kept[1], kept[0], kept[2]))]
            left_out += max(0, kept.shape[1] - most)
            kept = kept[:, :most]
            advance(stop - start)
    return Candidates(kept[0], kept[1], kept[2].astype(np.uint8), kept[3].astype(np.uint8), left_out)


def _nearest_turn(first: Hashes, second: Hashes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Fewest differing bits [A, B] between the first images and any turn of the second, and which turn that is."""
    bits = np.bitwise_count(first[:, :1] ^ second[:, 0])
    turn = np.zeros_like(bits)
    for number in range(1, len(_TURNS)):
        turned = np.bitwise_count(first[:, :1] ^ second[:, number])
        better = turned < bits
        bits[better], turn[better] = turned[better], number
    return bits, turn


def _hashed(images: Sequence[ImageRef], progress: Progress) -> tuple[Hashes, NDArray[np.bool_]]:
    """Hashes of all turns of all images [N, 8], and whether an image has enough contrast for one [N]."""
    hash_of = _perceptual_hash()
    hashes = np.zeros((len(images), len(_TURNS)), dtype=np.uint64)
    usable = np.zeros(len(images), dtype=np.bool_)

    def fill(row: int) -> None:
        grey = _grey(images[row], _DECODED_PX, _HASHED_PX)
        usable[row] = np.asarray(grey).std() >= _LEAST_CONTRAST
        if usable[row]:
            hashes[row] = [hash_of(grey if turn is None else grey.transpose(turn)) for turn in _TURNS]

    with (
        progress.task("hashing images", len(images), "img") as advance,
        ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool,
    ):
        try:
            for _ in pool.map(fill, range(len(images))):
                advance(1)
        except BaseException:  # on Ctrl-C too, do not wait for the rest
            pool.shutdown(cancel_futures=True)
            raise
    return hashes, usable


def _perceptual_hash() -> Any:
    try:
        import imagehash
    except ImportError as error:
        raise UsageError(
            "near-duplicates are found with ImageHash, which is not installed",
            hint="pip install 'cmpagl[audit]', or pass --no-near",
        ) from error
    return lambda image: np.packbits(imagehash.phash(image).hash).view(np.uint64)[0]


def _grey(image: ImageRef, decoded_px: int, side_px: int) -> Image.Image:
    grey = open_ref(image, at_least_px=decoded_px).convert("L")
    return grey.resize((side_px, side_px), Image.Resampling.LANCZOS)


def _spectrum(image: ImageRef, turn: Image.Transpose | None) -> NDArray[np.complex64]:
    """Phases of an image's spectrum, [P, P / 2 + 1], 0 outside the band."""
    grey = _grey(image, _ALIGNED_PX, _ALIGNED_PX)
    pixels = np.asarray(grey if turn is None else grey.transpose(turn), dtype=np.float32)
    faded = (pixels - pixels.mean()) * _window()  # without it the image's border would align with itself
    spectrum = np.fft.rfft2(faded)
    phases: NDArray[np.complex64] = (_band() * spectrum / (np.abs(spectrum) + 1e-6)).astype(np.complex64)
    return phases


def _alignment(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> float:
    """Height of the peak of their phase correlation: 1 for equal images, whatever their shift."""
    correlation = np.fft.irfft2(first * second.conj(), (_ALIGNED_PX, _ALIGNED_PX))
    own = np.fft.irfft2(_band().astype(np.complex64), (_ALIGNED_PX, _ALIGNED_PX))[0, 0]
    return float(correlation.max() / own)


def _window() -> NDArray[np.float64]:
    side = np.hanning(_ALIGNED_PX)
    return np.outer(side, side)


def _band() -> NDArray[np.bool_]:
    rows, columns = np.fft.fftfreq(_ALIGNED_PX)[:, None], np.fft.rfftfreq(_ALIGNED_PX)
    band: NDArray[np.bool_] = np.hypot(rows, columns) < _BAND
    return band


def _turn_name(number: int) -> str:
    turn = _TURNS[number]
    return "" if turn is None else turn.name.lower().replace("_", " ")
