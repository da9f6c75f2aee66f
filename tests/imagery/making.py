"""Images as remote sensing has them, made by script for the tests of `imagery/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

UTM = {"crs": "EPSG:32633", "transform": Affine(10, 0, 400_000, 0, -10, 5_000_000)}  # 10 m a pixel


def write(path: Path, planes: NDArray[Any], **options: Any) -> Path:
    """A file of planes [B, H, W], a GeoTIFF unless `driver` says otherwise. colours, names: of the bands."""
    colours, names = options.pop("colours", None), options.pop("names", ())
    nature = {"driver": "GTiff", "count": len(planes), "dtype": planes.dtype}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", height=planes.shape[1], width=planes.shape[2], **nature | options) as file:
        if colours is not None:
            file.colorinterp = colours
        file.write(planes)
        for band, name in enumerate(names, start=1):
            file.set_band_description(band, name)
    return path


def ground(bands: int = 3, side: int = 200, low: float = 0, high: float = 2_400, seed: int = 0) -> NDArray[np.float64]:
    """Fields of values [B, side, side] between two bounds, their mean in the middle."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(low, high, (bands, -(-side // 8), -(-side // 8)))
    return np.asarray(coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side])
