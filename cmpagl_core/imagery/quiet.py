"""Silences the output of Pillow, rasterio and their decoders, which would appear beside our own messages."""

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
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # rasterio's, of most plain images
    for library in ("PIL", "rasterio"):
        logging.getLogger(library).addHandler(logging.NullHandler())
    beside = Path(PIL.__file__).parent
    for folder in (beside.parent / "pillow.libs", beside / ".dylibs"):  # where Pillow's packages bring libtiff
        for found in folder.glob("libtiff*"):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(str(found)).TIFFSetErrorHandler(None)
