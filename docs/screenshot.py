"""Makes docs/images/serve.jpg: `python docs/screenshot.py WORKSPACE`, that of `make quickstart`, with Chromium.

Synthetic scenes of the data set become five mosaics with places in Europe, are indexed with the quickstart run into a
temporary workspace, and searched on the page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from playwright.sync_api import sync_playwright
from rasterio.transform import from_origin
from rasterio.warp import transform

OUT = Path(__file__).parent / "images" / "serve.jpg"
PLACES = (("esbjerg_20240612", 8.45, 55.47), ("lisbon_20230815", -9.14, 38.72), ("bergen_20240301", 5.32, 60.39),
          ("crete_20250502", 25.14, 35.34), ("brest_20220110", -4.49, 48.39))  # fmt: skip
SIDE, TILE = 4, 256
QUERY = "/?q=airport+near+sea&minus=0.5:forest"


def mosaics(images: Path, folder: Path) -> None:
    """One GeoTIFF for each place, of 4 x 4 images."""
    paths = np.random.default_rng(3).permutation(np.array(sorted(map(str, images.glob("*.png")))))
    for number, (name, lon, lat) in enumerate(PLACES):
        pixels = np.empty((3, SIDE * TILE, SIDE * TILE), dtype=np.uint8)
        for cell, path in enumerate(paths[number * SIDE * SIDE : (number + 1) * SIDE * SIDE]):
            top, left = (TILE * part for part in divmod(cell, SIDE))
            image = np.asarray(Image.open(path).convert("RGB").resize((TILE, TILE)))
            pixels[:, top : top + TILE, left : left + TILE] = image.transpose(2, 0, 1)
        crs = f"EPSG:{32601 + int((lon + 180) // 6)}"
        (east,), (north,) = transform("EPSG:4326", crs, [lon], [lat])
        about = {"crs": crs, "transform": from_origin(east, north, 0.5, 0.5), "photometric": "RGB"}
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", width=SIDE * TILE, height=SIDE * TILE, count=3, dtype="uint8",
            **about,
        ) as file:  # fmt: skip
            file.write(pixels)


def shoot(address: str) -> None:
    """The hits and the map, the second hit pointed at."""
    with sync_playwright() as playwright:
        path = os.environ.get("CMPAGL_CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 740}, reduced_motion="reduce")
        for _ in range(2):  # the first one waits for what a server opens once
            page.goto(address + QUERY)
            page.locator(".card .open").first.wait_for()
        page.click("#show-map")
        page.locator("path.footprint").first.wait_for()
        page.locator(".card").nth(1).hover()
        page.wait_for_load_state("networkidle")
        page.screenshot(path=OUT, type="jpeg", quality=80)
        browser.close()


def main(workspace: Path) -> None:
    """Draw, index, serve, shoot."""
    run = (workspace / "runs" / "quickstart").resolve()
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder, "scenes")
        scenes.mkdir()
        mosaics(workspace / "data" / "synthetic" / "source" / "images", scenes)
        cmpagl = [sys.executable, "-m", "cmpagl_cli", "--workspace", folder]
        options = ["--run", str(run), "--tile", str(TILE), "--tta", "none", "--name", "coast"]
        subprocess.run([*cmpagl, "index", str(scenes), *options], check=True)
        with subprocess.Popen([*cmpagl, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            shoot(server.stdout.readline().strip().rstrip("/"))
            server.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
