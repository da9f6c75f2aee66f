"""Keeps what Pillow and the decoders below it would print beside our own sentences off the terminal."""

from __future__ import annotations

import ctypes
import logging
import warnings
from contextlib import suppress
from pathlib import Path

import PIL
from PIL import Image


def silence_decoders() -> None:
    """Once, for the process: an image is decoded, or refused with a sentence that says why.

    warnings.catch_warnings is not safe in the threads that decode, hence filters that stay.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    beside = Path(PIL.__file__).parent
    for folder in (beside.parent / "pillow.libs", beside / ".dylibs"):  # where Pillow's packages bring libtiff
        for library in folder.glob("libtiff*"):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)
