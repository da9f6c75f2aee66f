"""From an ImageRef to its pixels, with the stamp of their file."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.images import decode_image, open_image
from cmpagl_core.imagery.scene_pool import SCENES, OpenScene
from cmpagl_core.imagery.stamps import Broken, opened_with_stamp
from cmpagl_core.imagery.stretch import Rendering

_LEAST_VALID = 0.05  # of a tile that is worth encoding


@dataclass(frozen=True)
class ReadImage:
    """The pixels of an image, RGB, and the stamp of its file."""

    pixels: Image.Image
    stamp: FileStamp


def read_image(ref: ImageRef, at_least_px: int | None = None) -> ReadImage | Broken:
    """Read an image, or say why it cannot be read. at_least_px: as in `open_image`.

    A piece of a scene in which there is nothing to see (no data, or one value alone) is Broken too, as `empty`.
    """
    try:
        if ref.window is not None:
            with SCENES.opened(ref.path, ref.reading) as scene:
                return _read_piece(scene, ref, ref.window, at_least_px)
        with opened_with_stamp(ref.path) as (stream, stamp):
            try:
                return ReadImage(decode_image(stream, ref.path, at_least_px=at_least_px, reading=ref.reading), stamp)
            except DataError as error:
                return _broken(ref, error, stamp)
    except DataError as error:
        return Broken(ref, str(error))


def open_ref(ref: ImageRef, at_least_px: int | None = None) -> Image.Image:
    """The pixels of an image, whatever its file is by now. Raises DataError as `open_image` does."""
    if ref.window is None:
        return open_image(ref.path, at_least_px=at_least_px, reading=ref.reading)
    with SCENES.opened(ref.path, ref.reading) as scene:
        return scene.read(ref.window, _rendering(ref), ref.reading, at_least_px).pixels


def _read_piece(scene: OpenScene, ref: ImageRef, window: Window, at_least_px: int | None) -> ReadImage | Broken:
    stamp = scene.stamp()
    try:
        piece = scene.read(window, _rendering(ref), ref.reading, at_least_px)
    except DataError as error:
        return _broken(ref, error, stamp)
    scene.check_unchanged()
    if piece.valid < _LEAST_VALID or piece.is_flat:
        return Broken(ref, f"{ref.image_id} is empty", stamp, empty=True)
    return ReadImage(piece.pixels, stamp)


def _rendering(ref: ImageRef) -> Rendering | None:
    return None if ref.scene is None else ref.scene.rendering


def _broken(ref: ImageRef, error: DataError, stamp: FileStamp) -> Broken:
    cause = error.__cause__
    passing = isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None)
    return Broken(ref, str(error), None if passing else stamp)
