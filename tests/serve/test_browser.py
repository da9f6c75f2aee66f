"""The page in a real browser: searches, filters, the map, exports, the keyboard alone, a phone, the dark, and axe."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.progress import Silent
from cmpagl_core.search.index import GalleryIndex, IndexInfo
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve.guard import Access
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace
from tests.conftest import FakeEncoder
from tests.imagery.making import ground, write
from tests.serve.conftest import served

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'cmpagl[dev]'")
Page = Any
expect = sync_api.expect

HOW = "Chromium is not here: `apt-get install chromium`, or name another in CMPAGL_CHROMIUM"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MANY = 100_000
PATIENCE_MS = 20_000  # a machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; the tests are skipped without it, unless CMPAGL_NEEDS_BROWSER makes that a failure."""
    path = os.environ.get("CMPAGL_CHROMIUM") or shutil.which("chromium")
    if path is None:
        (pytest.fail if os.environ.get("CMPAGL_NEEDS_BROWSER") else pytest.skip)(HOW)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe() -> str:
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """Tiles of two scenes with places and days, and pictures without."""
    from rasterio.transform import Affine

    from cmpagl_core.search.gallery_source import folder_source
    from cmpagl_core.search.indexing import build_index

    root = tmp_path_factory.mktemp("browser")
    for number, (name, lon, lat) in enumerate((("copenhagen_20240531", 12.5, 55.7), ("fiji_20230101", 177.4, -17.8))):
        place = {"crs": "EPSG:4326", "transform": Affine(0.001, 0, lon, 0, -0.001, lat)}
        planes = ground(side=240, low=0, high=255, seed=number).astype(np.uint8)
        write(root / "images" / f"{name}.tif", planes, **place, photometric="RGB")
    for number in range(6):
        planes = ground(side=60, low=0, high=255, seed=10 + number).astype(np.uint8)
        write(root / "images" / "plain" / f"{number}.png", planes, driver="PNG")
    from cmpagl_core.imagery.tiles import Tiling

    encoder = FakeEncoder()
    source = folder_source(root / "images", tiling=Tiling(80))
    return Searcher(build_index(encoder, source, root / "index", Silent()).index, lambda: encoder, Silent())


def many_images(picture: Path) -> Searcher:
    """As many hits as can be scrolled through: features at random, of one picture."""
    encoder, generator = FakeEncoder(), np.random.default_rng(0)
    features = generator.standard_normal((MANY, encoder.dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = [f"image {number:06d}" for number in range(MANY)]
    none = np.empty(0, dtype=np.int64)
    info = IndexInfo("many", "features", "", "", "", "fake", "", "", "", "", "fp32")
    gallery = GalleryIndex(
        picture.parent, features, TextTable.of(ids), TextTable.of([str(picture)] * MANY), None, TextTable.of([]),
        np.empty((0, encoder.dim), dtype=np.float32), none, none, None, None, info,
    )  # fmt: skip
    return Searcher(gallery, lambda: encoder, Silent())


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Searcher], str]]:
    from contextlib import ExitStack

    device: Any = None
    with ExitStack() as stack:

        def start(searcher: Searcher) -> str:
            bound = socket.socket()
            bound.bind(("127.0.0.1", 0))
            access = Access(port=bound.getsockname()[1])
            session = Session(Workspace(tmp_path), Silent(), device)
            stack.enter_context(served(searcher, session, bound, access))
            return f"http://127.0.0.1:{access.port}"

        yield start


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """A page of its own; anything on its console, or an address elsewhere, fails the test."""
    said: list[str] = []
    contexts = []

    def make(address: str, expected: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: said.append(message.text) if expected not in message.text or not expected else 0
        )
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not is_own(request.url, address) else None)
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert said == []


def is_own(url: str, address: str) -> bool:
    home = "/".join(address.split("/")[:3])
    return url.startswith((f"{home}/", "data:", f"blob:{home}/"))


def shown(page: Page, count: int = 1) -> None:
    """Wait for hits."""
    expect(page.locator(".card .open").nth(count - 1)).to_be_visible(timeout=PATIENCE_MS)


def violations(page: Page, axe: str) -> list[str]:
    page.evaluate(axe)
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


def names(page: Page) -> list[str]:
    return page.locator(".card .name").all_inner_texts()  # type: ignore[no-any-return]


@pytest.fixture
def home(serve: Callable[[Searcher], str], scenes: Searcher) -> str:
    return serve(scenes)


def test_a_text_is_searched_and_the_address_is_a_link(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(home)
    page.fill("#words", "harbour +2:tanks -ships")
    page.keyboard.press("Enter")
    shown(page, 6)
    assert page.url.endswith("/?q=harbour&plus=2%3Atanks&minus=ships")
    assert "24 images, best first" in page.inner_text("#count")
    found = names(page)
    again = open_page(page.url)
    shown(again, 6)
    assert names(again) == found
    assert again.locator(".part .name").all_inner_texts() == ["tanks", "ships"]
    again.locator(".part input[type=range]").nth(1).fill("0.3")
    expect(again.locator(".part output").nth(1)).to_have_text("0.3")
    again.wait_for_url("**minus=0.3%3Aships")
    again.go_back()
    expect(again.locator(".part output").nth(1)).to_have_text("1.0")


def test_an_image_is_searched(home: str, open_page: Callable[..., Page], scenes: Searcher) -> None:
    page = open_page(home)
    row = scenes.row_of("plain/3.png")
    page.set_input_files("#file", scenes.gallery.image(row).path)
    shown(page)
    assert names(page)[0] == "plain/3.png"
    assert page.inner_text(".card .score >> nth=0") == "1.000"
    expect(page.locator(".part .name")).to_have_text("3.png")
    page.locator(".samples").wait_for(state="hidden")


def test_a_dropped_image_is_searched(home: str, open_page: Callable[..., Page], scenes: Searcher) -> None:
    page = open_page(home)
    content = list(scenes.gallery.image(scenes.row_of("plain/1.png")).path.read_bytes())
    page.evaluate(
        """content => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], "dropped.png", {type: "image/png"}));
            document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        content,
    )
    shown(page)
    assert names(page)[0] == "plain/1.png"


def test_filters_narrow_and_are_in_the_address(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{home}/?q=sea")
    shown(page)
    page.click("#show-filters")
    page.get_by_label("Path").fill("*/plain/*")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#count")).to_contain_text("6 images")
    assert "path=*%2Fplain%2F*" in page.url
    expect(page.locator("#filter-count")).to_have_text("1")
    page.get_by_label("Path").fill("nowhere")
    page.keyboard.press("Enter")
    expect(page.locator("#trouble")).to_contain_text("No image passes the filters.")
    page.get_by_role("button", name="Clear the filters").click()
    expect(page.locator("#count")).to_contain_text("24 images")


def test_an_error_says_what_to_do(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{home}/?q=sea&bbox=1,2,3", expected="400 (Bad Request)")
    trouble = page.locator("#trouble")
    expect(trouble).to_contain_text("--bbox '1,2,3' is not 4 numbers")
    expect(trouble).to_contain_text("give W,S,E,N in degrees")


def test_map_and_grid_show_each_other(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{home}/?q=sea&scene=*.tif")
    shown(page)
    page.click("#show-map")
    expect(page.locator("#map-note")).to_contain_text("18 of the 18 hits that are loaded have a place.")
    expect(page.locator("path.land").first).to_be_attached()
    expect(page.locator("path.graticule").first).to_be_attached()
    page.locator(".card .open").first.hover()
    expect(page.locator("path.footprint.marked")).to_have_count(1)
    page.locator("path.footprint").last.dispatch_event("mouseover")
    expect(page.locator(".card.marked")).to_have_count(1)
    page.locator("path.footprint").last.dispatch_event("click")
    expect(page.locator("#details")).to_be_visible()
    page.keyboard.press("Escape")
    page.click("#show-filters")
    page.get_by_label("Box in degrees").fill("12,55,13,56")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_contain_text("9 images")
    assert all(name.startswith("copenhagen") for name in names(page))
    page.get_by_role("button", name="Take the map's view").click()
    expect(page.get_by_label("Box in degrees")).not_to_have_value("12,55,13,56")


def test_details_zoom_out_to_the_scene_and_lead_on(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{home}/?q=sea&scene=*.tif")
    shown(page)
    page.locator(".card .open").first.click()
    details = page.locator("#details")
    expect(details.get_by_text("80 × 80 px at")).to_be_visible()
    expect(details.locator(".outline")).to_be_hidden()
    details.get_by_role("button", name="Scene").click()
    expect(details.locator(".outline")).to_be_visible()
    assert (
        page.evaluate(
            "document.querySelector('.shown').decode().then(() => document.querySelector('.shown').naturalWidth)"
        )
        == 240
    )
    first = details.locator("h2").inner_text()
    page.keyboard.press("ArrowRight")
    expect(details.locator("h2")).not_to_have_text(first)
    details.get_by_role("button", name="Not like this").click()
    expect(page.locator(".part.minus")).to_have_count(1)
    assert "minus_like=0.5" in page.url


@pytest.mark.parametrize(
    ("format", "suffix"), [("paths", "txt"), ("csv", "csv"), ("geojson", "geojson"), ("zip", "zip")]
)
def test_selected_hits_are_saved(home: str, open_page: Callable[..., Page], format: str, suffix: str) -> None:
    page = open_page(f"{home}/?q=sea")
    shown(page, 3)
    for place in (0, 2):
        page.locator(".card").nth(place).hover()
        page.locator(".card .tick").nth(place).check()
    expect(page.locator(".selected-count")).to_have_text("2 selected")
    page.get_by_label("Format of the export").select_option(format)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export selected").click()
    assert download.value.suggested_filename == f"hits-index.{suffix}"
    content = Path(download.value.path()).read_bytes()
    if format == "csv":
        rows = content.decode().splitlines()
        assert [row.split(",")[0] for row in rows] == ["rank", "1", "2"]


def test_the_keyboard_alone_is_enough(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(home)
    press = page.keyboard.press
    press("/")
    page.keyboard.type("sea")
    press("Enter")
    shown(page, 12)
    press("Escape")
    press("ArrowDown")
    expect(page.locator(".card .open").first).to_be_focused()
    press("ArrowRight")
    press("x")
    expect(page.locator(".selected-count")).to_have_text("1 selected")
    press("End")
    expect(page.locator('[data-place="23"] .open')).to_be_focused()
    press("Home")
    press("Enter")
    expect(page.locator("#details")).to_be_visible()
    press("ArrowRight")
    press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    expect(page.locator('[data-place="1"] .open')).to_be_focused()
    press("l")
    expect(page.locator(".part.plus")).to_have_count(1)
    press("f")
    expect(page.get_by_role("textbox", name="Scene")).to_be_focused()
    press("Escape")
    press("m")
    expect(page.locator("#map-panel")).to_be_visible()
    press("?")
    expect(page.locator("#keys")).to_be_visible()
    press("Escape")
    expect(page.locator("#keys")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(home: str, open_page: Callable[..., Page], axe: str, scheme: str, width: int) -> None:
    page = open_page(home, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert violations(page, axe) == []
    page.fill("#words", "sea +land -ice")
    page.keyboard.press("Enter")
    shown(page, 2)
    page.click("#show-map")
    page.locator("path.footprint").first.wait_for(state="attached")
    page.click("#show-filters")
    assert violations(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#show-filters")
    page.locator(".card .open").first.click()
    expect(page.locator("#details h2")).to_be_visible()
    assert violations(page, axe) == []
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert violations(page, axe) == []
    ground_colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground_colour)[:3])) < 150) == (scheme == "dark")


def test_a_hundred_thousand_hits_scroll(
    serve: Callable[[Searcher], str], open_page: Callable[..., Page], tiny_images: Path
) -> None:
    home = serve(many_images(tiny_images / "north" / "scene_01.jpg"))
    page = open_page(f"{home}/?q=everything")
    shown(page)
    expect(page.locator("#count")).to_contain_text("100,000 images")
    page.evaluate("document.getElementById('hits').scrollTop = 1e9")
    expect(page.locator(f'[data-place="{MANY - 1}"] .facts b')).to_have_text(str(MANY), timeout=PATIENCE_MS)
    assert page.locator(".card").count() < 120
    ranks = [int(text) for text in page.locator(".card .facts b").all_inner_texts()]
    assert ranks == sorted(ranks)
    page.evaluate("document.getElementById('hits').scrollTop = 0")
    expect(page.locator('[data-place="0"] .facts b')).to_have_text("1")


def test_a_server_that_is_gone_is_said(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(home, expected="net::ERR")
    page.route("**/api/search*", lambda route: route.abort())
    page.fill("#words", "lake")
    page.keyboard.press("Enter")
    expect(page.locator("#trouble")).to_contain_text("The server does not answer.")
    page.unroute("**/api/search*")
    page.get_by_role("button", name="Try again").click()
    shown(page)
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_slow_search_shows_progress(home: str, open_page: Callable[..., Page]) -> None:
    page = open_page(home)
    waiting: list[Any] = []
    page.route("**/api/search*", lambda route: waiting.append(route))
    page.fill("#words", "lake")
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_be_visible()
    waiting[0].continue_()
    shown(page)
    expect(page.locator("#progress")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_evaluation_is_shown_beside_another(
    serve: Callable[[Searcher], str], open_page: Callable[..., Page], tiny_prepared: Path, tmp_path: Path, axe: str,
    scheme: str,
) -> None:  # fmt: skip
    from cmpagl_core.datasets.prepared import open_prepared
    from cmpagl_core.search.gallery_source import dataset_source
    from cmpagl_core.search.indexing import build_index

    source, encoders = dataset_source(open_prepared(tiny_prepared)), [FakeEncoder(), FakeEncoder("other")]
    indexes = [build_index(one, source, tmp_path / "indexes" / one.name, Silent()).index for one in encoders]
    page = open_page(f"{serve(Searcher(indexes[0], lambda: encoders[0], Silent()))}/evaluation", color_scheme=scheme)
    expect(page.locator("tbody th").first).to_contain_text("fake")
    page.locator("#split").select_option("all")
    expect(page.locator("#found h2").first).to_contain_text("12 images, 24 captions of all")
    page.locator("#against").select_option("other")
    expect(page.locator("#found tbody >> nth=0").locator("tr")).to_have_count(2)
    assert page.url.endswith("?split=all&against=other")
    expect(page.locator(".queries article").first.locator(".found-row")).to_have_count(2)
    assert violations(page, axe) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".queries a").first.click()
    shown(page)
