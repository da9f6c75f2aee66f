"""Keeps scenes open between pieces, so that each is opened, hashed and sampled once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.companions import companions
from cmpagl_core.imagery.image_ref import Window
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.stamps import cannot_read, check_unchanged, file_state, stamp_file
from cmpagl_core.imagery.stretch import Rendering

if TYPE_CHECKING:  # GDAL, which a plain image as a query does without
    from cmpagl_core.imagery.scene_file import Piece, SceneFile

_OPEN_AT_ONCE = 3


class PlainImage:
    """A plain image that Pillow has decoded whole, cut where a SceneFile is read."""

    def __init__(self, path: Path, pixels: Image.Image) -> None:
        self.path, self._pixels = path, pixels
        self.width, self.height = pixels.size

    def read(self, window: Window) -> Piece:
        """A piece. Raises DataError when it is not inside."""
        from cmpagl_core.imagery.scene_file import Piece

        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        if not (0 <= box[0] < box[2] <= self.width and 0 <= box[1] < box[3] <= self.height):
            raise DataError(f"{self.path} has {self.width} x {self.height} pixels, and {window} is not inside")
        return Piece(self._pixels.crop(box), 1.0)


class OpenScene:
    """A scene of the pool: its file, opened when it is first needed, and what is known of it."""

    def __init__(self, path: Path, reading: Reading, state: tuple[int, int]) -> None:
        self.path, self.state, self.users = path, state, 0
        self._reading, self._lock = reading, threading.RLock()
        self._renderings: dict[Reading, Rendering] = {}

    @property
    def source(self) -> SceneFile | PlainImage:
        """The file. Raises DataError when it cannot be opened."""
        with self._lock:
            return self._source

    @cached_property
    def _source(self) -> SceneFile | PlainImage:
        from cmpagl_core.imagery.images import open_source  # which knows both kinds of files

        return open_source(self.path, self._reading)

    @property
    def is_rendered(self) -> bool:
        """Whether bands and stretch have a say: not in a plain image."""
        return not isinstance(self.source, PlainImage)

    @cached_property
    def beside(self) -> tuple[Path, ...]:
        """Files that are read with it."""
        return companions(self.path)

    @cached_property
    def _stamp(self) -> FileStamp:
        return stamp_file(self.path)

    def stamp(self) -> FileStamp:
        """Of its content. Raises DataError when it is another one by now."""
        with self._lock:
            stamp = self._stamp
        if (stamp.size, stamp.mtime_ns) != self.state:
            raise DataError(f"{self.path} changed while it was being read", hint="run the command again")
        return stamp

    def check_unchanged(self) -> None:
        """Raises DataError when the file is not as it was when it was opened."""
        check_unchanged(self.path, self.state, self.beside)

    def rendering(self, reading: Reading) -> Rendering:
        """As `SceneFile.rendering`, reckoned once."""
        assert not isinstance(self.source, PlainImage), "a plain image has no bands"
        with self._lock:
            if reading not in self._renderings:
                self._renderings[reading] = self.source.rendering(reading)
            return self._renderings[reading]

    def read(self, window: Window, rendering: Rendering | None, reading: Reading, at_least_px: int | None) -> Piece:
        """A piece, rendered as told, else as the reading says. Raises DataError."""
        source = self.source
        if isinstance(source, PlainImage):
            return source.read(window)
        return source.read(window, rendering or self.rendering(reading), at_least_px)

    @property
    def is_large(self) -> bool:
        """Whether it takes much memory: a plain image, which is whole."""
        return isinstance(self.__dict__.get("_source"), PlainImage)

    def close(self) -> None:
        """Let go of the file, if it was opened."""
        source = self.__dict__.get("_source")
        if source is not None and not isinstance(source, PlainImage):
            source.close()


class ScenePool:
    """A few open scenes; the least recently used is closed first, a plain image as soon as another comes.

    Nobody waits for memory or a disk while the pool is locked: who holds what is waited for could not give it back.
    """

    def __init__(self, open_at_once: int = _OPEN_AT_ONCE) -> None:
        self._limit, self._lock = open_at_once, threading.Lock()
        self._scenes: OrderedDict[tuple[Path, bool], OpenScene] = OrderedDict()

    @contextmanager
    def opened(self, path: Path, reading: Reading) -> Iterator[OpenScene]:
        """A scene as it is now. Raises DataError when it cannot be opened."""
        try:
            state = file_state(path)
        except FileNotFoundError as error:
            raise DataError(f"image {path} does not exist") from error
        except OSError as error:
            raise cannot_read(path, error) from error
        scene = self._entered((path, reading == DEFAULT), reading, state)
        try:
            _ = scene.source
            yield scene
        finally:
            with self._lock:
                scene.users -= 1

    def close(self) -> None:
        """Close what nobody reads."""
        with self._lock:
            self._close_idle(0)

    def _entered(self, key: tuple[Path, bool], reading: Reading, state: tuple[int, int]) -> OpenScene:
        with self._lock:
            scene = self._scenes.get(key)
            if scene is None or scene.state != state:
                scene = self._scenes[key] = OpenScene(key[0], reading, state)
            self._scenes.move_to_end(key)
            scene.users += 1
            self._close_idle(self._limit)
            return scene

    def _close_idle(self, limit: int) -> None:
        idle = [key for key, scene in self._scenes.items() if not scene.users]
        surplus = idle[: max(0, len(self._scenes) - limit)]
        for key in dict.fromkeys([*surplus, *(key for key in idle if self._scenes[key].is_large)]):
            self._scenes.pop(key).close()


SCENES = ScenePool()
"""Of this process, as the memory that they take is."""
