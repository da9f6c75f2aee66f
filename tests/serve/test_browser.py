"""The page in a real browser: searches, filters, the map, exports, the keyboard alone, a phone, the dark, and axe.

One browser, one page and one server serve all tests, each of which begins at an address of its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import dataset_source
from cmpagl_core.search.index import GalleryIndex, IndexInfo
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.searcher import Searcher
from tests.conftest import FakeEncoder
from tests.serve.conftest import PHONE, WIDE, OpenPage, Page, Serve

expect = pytest.importorskip("playwright.sync_api", reason="pip install 'cmpagl[dev]'").expect

MANY = 100_000


def shown(page: Page, count: int = 1) -> None:
    """Wait for hits."""
    page.locator(".card .open").nth(count - 1).wait_for()


def says(page: Page, place: str, words: str) -> None:
    """Wait until something has these words; unlike `expect`, this looks often."""
    page.locator(place).filter(has_text=words).first.wait_for()


def violations(page: Page, axe: str, part: str = "html") -> list[str]:
    """What axe-core has against a part of the page as it is now; beside an open dialog nothing can be reached."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    found = page.evaluate("async part => (await axe.run(part, {resultTypes: ['violations']})).violations", part)
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


def names(page: Page) -> list[str]:
    return page.locator(".card .name").all_inner_texts()  # type: ignore[no-any-return]


def test_a_text_is_searched_and_the_address_is_a_link(home: str, open_page: OpenPage) -> None:
    page = open_page(home)
    page.fill("#words", "harbour +2:tanks -ships")
    page.keyboard.press("Enter")
    shown(page, 6)
    assert page.url.endswith("/?q=harbour&plus=2%3Atanks&minus=ships")
    assert "24 images, best first" in page.inner_text("#count")
    found = names(page)
    open_page(page.url)
    shown(page, 6)
    assert names(page) == found
    assert page.locator(".part .name").all_inner_texts() == ["tanks", "ships"]
    page.locator(".part input[type=range]").nth(1).fill("0.3")
    says(page, ".part output >> nth=1", "0.3")
    page.wait_for_url("**minus=0.3%3Aships")
    page.go_back()
    says(page, ".part output >> nth=1", "1.0")


GIVE = """([event, name, content]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(content)], name, {type: "image/png"}));
    const about = {bubbles: true, cancelable: true};
    document.dispatchEvent(event === "drop" ? new DragEvent("drop", {dataTransfer: data, ...about})
                                            : new ClipboardEvent("paste", {clipboardData: data, ...about}));
}"""


def test_an_image_is_chosen_dropped_and_pasted(home: str, open_page: OpenPage, scenes: Searcher) -> None:
    page = open_page(home)
    paths = [scenes.gallery.image(scenes.row_of(f"plain/{number}.png")).path for number in range(3)]
    page.set_input_files("#file", paths[0])
    says(page, ".card .name", "plain/0.png")
    assert page.inner_text(".card .score >> nth=0") == "1.000"
    says(page, ".part .name", "0.png")
    page.locator(".samples").wait_for(state="hidden")
    for event, path in zip(("drop", "paste"), paths[1:], strict=True):
        page.evaluate(GIVE, [event, path.name, list(path.read_bytes())])
        says(page, ".card .name >> nth=0", f"plain/{path.name}")
        says(page, ".part .name", path.name)


def test_filters_narrow_and_are_in_the_address(home: str, open_page: OpenPage) -> None:
    page = open_page(f"{home}/?q=sea")
    shown(page)
    page.click("#show-filters")
    page.get_by_label("Path").fill("*/plain/*")
    page.get_by_role("button", name="Apply").click()
    says(page, "#count", "6 images")
    assert "path=*%2Fplain%2F*" in page.url
    says(page, "#filter-count", "1")
    page.get_by_label("Path").fill("nowhere")
    page.keyboard.press("Enter")
    says(page, "#trouble", "No image passes the filters.")
    page.get_by_role("button", name="Clear the filters").click()
    says(page, "#count", "24 images")
    page.get_by_label("From").fill("2024")
    page.get_by_role("textbox", name="Scene").fill("copen*")
    page.keyboard.press("Enter")
    says(page, "#count", "9 images")
    page.get_by_label("Least score").fill("9")
    page.keyboard.press("Enter")
    says(page, "#trouble", "No image passes the filters.")
    page.get_by_label("Least score").fill("")
    page.get_by_label("Hide near-duplicates").check()
    page.wait_for_url("**diverse=true")
    shown(page)


# by which time the page has seen its new shape, and looks soon for hits that are in sight
ANSWER_AFTER_TWO_FRAMES = """() => {
    const ask = window.fetch;
    const frame = () => new Promise(done => requestAnimationFrame(done));
    const refused = {detail: "notes.txt is no image that can be sent; send JPEG, PNG", hint: "send JPEG, PNG"};
    window.fetch = async (address, options) => {
        if (options?.method !== "POST") return ask(address, options);
        window.asked = (window.asked ?? 0) + 1;
        await frame();
        await frame();
        return new Response(JSON.stringify(refused), {status: 400});
    };
}"""


def test_an_error_says_what_to_do(home: str, open_page: OpenPage) -> None:
    page = open_page(f"{home}/?q=sea&bbox=1,2,3", allowed="400 (Bad Request)")
    says(page, "#trouble", "--bbox '1,2,3' is not 4 numbers")
    says(page, "#trouble", "give W,S,E,N in degrees")
    page.get_by_role("button", name="Clear the filters").click()
    shown(page)
    page.evaluate(ANSWER_AFTER_TWO_FRAMES)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    says(page, "#trouble", "notes.txt is no image that can be sent")
    page.wait_for_timeout(60)  # in which the hits that were there were asked for again
    assert page.evaluate("window.asked") == 1
    says(page, "#trouble", "send JPEG, PNG")


def test_a_tile_server_of_ones_own_is_the_ground(serve: Serve, open_page: OpenPage, scenes: Searcher) -> None:
    page = open_page(serve(scenes, "http://tiles.test/{z}/{x}/{y}.png") + "/?q=sea", allowed="http://tiles.test/")
    content = scenes.gallery.image(scenes.row_of("plain/1.png")).path.read_bytes()
    page.route("http://tiles.test/**", lambda route: route.fulfill(body=content, content_type="image/png"))
    shown(page)
    page.click("#show-map")
    page.locator("img.leaflet-tile-loaded").first.wait_for()
    page.locator("path.footprint").first.wait_for()


def test_map_and_grid_show_each_other(home: str, open_page: OpenPage) -> None:
    page = open_page(f"{home}/?q=sea&scene=*.tif")
    shown(page)
    page.click("#show-map")
    says(page, "#map-note", "18 of the 18 hits that are loaded have a place.")
    page.locator("path.land").first.wait_for(state="attached")
    page.locator("path.graticule").first.wait_for(state="attached")
    page.locator(".card .open").first.hover()
    page.locator("path.footprint.marked").wait_for()
    page.locator("path.footprint").last.dispatch_event("mouseover")
    page.locator(".card.marked").wait_for()
    page.locator("path.footprint").last.dispatch_event("click")
    page.locator("#details").wait_for()
    page.keyboard.press("Escape")
    page.click("#show-filters")
    page.get_by_label("Box in degrees").fill("12,55,13,56")
    page.keyboard.press("Enter")
    says(page, "#count", "9 images")
    assert all(name.startswith("copenhagen") for name in names(page))
    page.click("#show-map")
    page.get_by_role("button", name="Take the map's view").click()
    says(page, ".toast", "The map is open now")
    page.get_by_role("button", name="Take the map's view").click()
    expect(page.get_by_label("Box in degrees")).not_to_have_value("12,55,13,56")
    shown(page)


NATURAL_WIDTH = "document.querySelector('.shown').decode().then(() => document.querySelector('.shown').naturalWidth)"


def test_details_zoom_out_to_the_scene_and_lead_on(home: str, open_page: OpenPage) -> None:
    page = open_page(f"{home}/?q=sea&scene=*.tif")
    shown(page)
    page.locator(".card .open").first.click()
    details = page.locator("#details")
    details.get_by_text("80 × 80 px at").wait_for()
    details.locator(".outline").wait_for(state="hidden")
    details.get_by_role("button", name="Scene").click()
    details.locator(".outline").wait_for()
    assert page.evaluate(NATURAL_WIDTH) == 240
    first = details.locator("h2").inner_text()
    page.keyboard.press("ArrowRight")
    expect(details.locator("h2")).not_to_have_text(first)
    details.get_by_role("button", name="Not like this").click()
    page.locator(".part.minus").wait_for()
    assert "minus_like=0.5" in page.url


def test_an_explanation_lies_over_the_image(home: str, open_page: OpenPage) -> None:
    overlays = [f"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='{side}'/>" for side in (8, 9)]
    words = [{"word": "sea", "percent": 71.6, "overlay": overlays[1]}]
    answer = {"text": "sea", "cosine": 0.5, "match_percent": 93.2, "overlay": overlays[0], "words": words,
              "notes": ["of little meaning"]}  # fmt: skip
    page = open_page(f"{home}/?q=sea&scene=*.tif")
    page.route("**/api/explain?*", lambda route: route.fulfill(json=answer))
    page.locator(".card .open").first.click()
    page.get_by_role("button", name="Explain").click()
    says(page, ".explained h3", "Match 93 %")
    says(page, ".explained p", "of little meaning")
    expect(page.locator(".shown")).to_have_attribute("src", overlays[0])
    page.get_by_role("button", name="sea 72 %").click()
    expect(page.locator(".shown")).to_have_attribute("src", overlays[1])


def test_selected_hits_are_saved(home: str, open_page: OpenPage) -> None:
    page = open_page(f"{home}/?q=sea")
    shown(page, 3)
    for place in (0, 2):
        page.locator(".card .tick").nth(place).check()
    says(page, ".selected-count", "2 selected")
    for format, suffix, start in (
        ("paths", "txt", b"/"), ("csv", "csv", b"rank,image_id,"), ("geojson", "geojson", b"{"),
        ("gpkg", "gpkg", b"SQLite format 3"), ("zip", "zip", b"PK"),
    ):  # fmt: skip
        page.get_by_label("Format of the export").select_option(format)
        with page.expect_download() as download:
            page.get_by_role("button", name="Export selected").click()
        assert download.value.suggested_filename == f"hits-index.{suffix}"
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(start)
        if format == "csv":
            assert [row.split(",")[0] for row in content.decode().splitlines()] == ["rank", "1", "2"]


def test_the_keyboard_alone_is_enough(home: str, open_page: OpenPage) -> None:
    page = open_page(home)
    press = page.keyboard.press
    press("/")
    page.keyboard.type("sea")
    press("Enter")
    shown(page, 12)
    press("Escape")
    press("ArrowDown")
    page.locator('[data-place="0"] .open:focus').wait_for()
    press("ArrowRight")
    press("x")
    says(page, ".selected-count", "1 selected")
    press("End")
    page.locator('[data-place="23"] .open:focus').wait_for()
    press("Home")
    press("Enter")
    page.locator("#details").wait_for()
    press("ArrowRight")
    press("Escape")
    page.locator("#details").wait_for(state="hidden")
    page.locator('[data-place="1"] .open:focus').wait_for()
    for _ in range(3):
        press("Shift+Tab")
    press("Tab")
    page.locator("select:focus").wait_for()
    press("Tab")
    with page.expect_download():
        press("Enter")
    press("ArrowDown")
    press("l")
    page.locator(".part.plus").wait_for()
    press("f")
    page.locator("#filters input:focus").wait_for()
    press("Escape")
    press("m")
    page.locator("#map-panel").wait_for()
    press("?")
    page.locator("#keys").wait_for()
    press("Escape")
    page.locator("#keys").wait_for(state="hidden")


@pytest.mark.parametrize(("dark", "size"), [(False, WIDE), (True, PHONE)], ids=["light", "dark on a phone"])
def test_axe_finds_nothing(home: str, open_page: OpenPage, axe: str, dark: bool, size: dict[str, int]) -> None:
    page = open_page(home, dark=dark, size=size)
    assert violations(page, axe) == []
    page.fill("#words", "sea +land -ice")
    page.keyboard.press("Enter")
    shown(page, 2)
    page.click("#show-map")
    page.locator("path.footprint").first.wait_for(state="attached")
    page.click("#show-filters")
    assert violations(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.click("#show-filters")
    page.locator(".card .open").first.click()
    page.locator("#details h2").wait_for()
    assert violations(page, axe, "#details") == []
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert violations(page, axe, "#keys") == []
    ground_colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground_colour)[:3])) < 150) == dark


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


def test_a_hundred_thousand_hits_scroll(serve: Serve, open_page: OpenPage, tiny_images: Path) -> None:
    home = serve(many_images(tiny_images / "north" / "scene_01.jpg"))
    page = open_page(f"{home}/?q=everything")
    shown(page)
    says(page, "#count", "100,000 images")
    page.evaluate("document.getElementById('hits').scrollTop = 1e9")
    says(page, f'[data-place="{MANY - 1}"] .facts b', str(MANY))
    assert page.locator(".card").count() < 120
    ranks = [int(text) for text in page.locator(".card .facts b").all_inner_texts()]
    assert ranks == sorted(ranks)
    page.evaluate("document.getElementById('hits').scrollTop = 0")
    says(page, '[data-place="0"] .facts b', "1")


def test_a_server_that_is_gone_or_slow_is_said(home: str, open_page: OpenPage) -> None:
    page = open_page(home, allowed="net::ERR")
    page.route("**/api/search*", lambda route: route.abort())
    page.fill("#words", "lake")
    page.keyboard.press("Enter")
    says(page, "#trouble", "The server does not answer.")
    page.unroute("**/api/search*")
    waiting: list[Any] = []
    page.route("**/api/search*", lambda route: waiting.append(route))
    page.get_by_role("button", name="Try again").click()
    page.locator("#progress").wait_for()
    waiting[0].continue_()
    shown(page)
    page.locator("#progress").wait_for(state="hidden")
    page.locator("#trouble").wait_for(state="hidden")


def test_the_evaluation_is_shown_beside_another(
    serve: Serve, open_page: OpenPage, tiny_prepared: Path, tmp_path: Path, axe: str
) -> None:
    from cmpagl_core.datasets.prepared import open_prepared

    source, encoders = dataset_source(open_prepared(tiny_prepared)), [FakeEncoder(), FakeEncoder("other")]
    indexes = [build_index(one, source, tmp_path / "indexes" / one.name, Silent()).index for one in encoders]
    page = open_page(f"{serve(Searcher(indexes[0], lambda: encoders[0], Silent()))}/evaluation")
    says(page, "tbody th", "fake")
    page.locator("#split").select_option("all")
    says(page, "#found h2", "12 images, 24 captions of all")
    page.locator("#against").select_option("other")
    says(page, "#found tbody >> nth=0 >> tr >> nth=1", "other")
    assert page.url.endswith("?split=all&against=other")
    assert page.locator(".queries article").first.locator(".found-row").count() == 2
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size(PHONE)
    assert violations(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator(".queries a").first.click()
    shown(page)
