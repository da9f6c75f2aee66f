"""A file of GDAL's, opened as many times as threads read it at once: GDAL takes no two readers at one handle."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rasterio.io import DatasetReader

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.gdal import UNREADABLE, brief, gdal, open_dataset, open_page

_MOST_HANDLES, _MOST_PAGES = 8, 1_000


class Handles:
    """first: a handle for what does not change; one dataset, or one for each page of a TIFF whose pages are bands."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is broken, of no known format, or of pages that are not of one kind."""
        self.path = path
        self._stack, self._changed = ExitStack(), threading.Condition()
        self.first = self._opened()
        self._free, self._open = [self.first], 1
        # A strip is decoded for all pieces beside each other, and kept by the handle that has decoded it.
        is_in_strips = int(self.first[0].block_shapes[0][1]) >= int(self.first[0].width)
        self._most = 1 if is_in_strips else max(1, min(_MOST_HANDLES, os.cpu_count() or 1))

    @contextmanager
    def taken(self) -> Iterator[list[DatasetReader]]:
        """A handle for this thread alone, inside `gdal()`."""
        with gdal():
            handle = self._take()
            try:
                yield handle
            finally:
                with self._changed:
                    self._free.append(handle)
                    self._changed.notify()

    def close(self) -> None:
        """Let go of the file."""
        with self._changed, gdal():
            self._stack.close()

    def _take(self) -> list[DatasetReader]:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._open < self._most)
            if self._free:
                return self._free.pop()
            self._open += 1
        try:
            return self._opened()
        except BaseException:
            with self._changed:
                self._open -= 1
                self._changed.notify()
            raise

    def _opened(self) -> list[DatasetReader]:
        try:
            with gdal(), ExitStack() as opening:
                found = [opening.enter_context(open_dataset(self.path))]
                pages = len(found[0].subdatasets)
                if pages:
                    found = list(self._pages(found[0], opening, pages))
                with self._changed:
                    self._stack.push(opening.pop_all().__exit__)
                return found
        except UNREADABLE as error:
            raise DataError(f"{self.path} is a broken image ({brief(str(error))})") from error

    def _pages(self, first: DatasetReader, opening: ExitStack, count: int) -> Iterator[DatasetReader]:
        """The pages of a TIFF as bands. Raises DataError where they are not of one kind."""
        if first.driver != "GTiff" or count > _MOST_PAGES:
            hint = "save the one that is meant as a file of its own"
            raise DataError(f"{self.path} holds {count:,} images", hint=hint)
        for number in range(1, count + 1):
            page = opening.enter_context(open_page(self.path, number))
            if page.count != 1 or page.shape != first.shape or page.dtypes != first.dtypes:
                raise DataError(
                    f"{self.path} has {count} pages of different kinds or of several bands",
                    hint="save the one that is meant as a file of its own",
                )
            yield page
