"""The gallery page stands alone, shows every hit, and nothing that comes from outside can act in it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cmpagl_core.files import write_text
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery import GalleryQuery, render_gallery
from cmpagl_core.search.query import Hit

HOSTILE = '<script>alert("x")</script>\' onmouseover=1 {{ 7 * 7 }} &amp;'


class Page(HTMLParser):
    """Tags, their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def hits(tiny_images: Path, tmp_path: Path) -> list[Hit]:
    paths = sorted(tiny_images.rglob("*.jpg"))[:3]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    return [
        Hit(1, ImageRef("first", paths[0]), 0.91234, ("a square", "a square", "bright")),
        Hit(2, ImageRef(HOSTILE, paths[1]), 0.5, (HOSTILE,)),
        Hit(3, ImageRef("gone", tmp_path / "gone.jpg"), 0.4, ()),
        Hit(4, ImageRef("broken", broken), -0.1, ("\N{AIRPLANE}",)),
    ]


def page_of(hits: list[Hit], text: str = "square", image: Path | None = None) -> Page:
    return Page(render_gallery(GalleryQuery(text, image, "tiny", 1200, "run"), hits, Silent()))


def test_every_hit_is_shown_with_rank_score_and_captions(hits: list[Hit]) -> None:
    page = page_of(hits)
    assert len(page.all("article")) == 4
    words = page.text.split()
    for shown in ("first", "0.912", "gone", "-0.100", "bright", "\N{AIRPLANE}", "1,200"):
        assert shown in words
    assert words.count("bright") == 1
    assert page.text.count("a square") == 1  # said five times of many images, shown once


def test_thumbnails_are_inside_the_page_and_small(hits: list[Hit]) -> None:
    images = page_of(hits).all("img")
    assert len(images) == 2
    for image in images:
        source = image["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as thumbnail:
            assert max(thumbnail.size) <= 320


def test_images_that_are_gone_or_broken_are_marked(hits: list[Hit]) -> None:
    page = page_of(hits)
    assert "missing" in page.text.split()
    assert page.text.split().count("broken") == 2  # its id and its mark


def test_nothing_from_outside_becomes_code(hits: list[Hit]) -> None:
    page = page_of(hits, text=HOSTILE)
    assert page.all("script") == []
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) >= 3  # in the title, the head and the captions, letter by letter


def test_the_page_names_no_address_outside_itself(hits: list[Hit]) -> None:
    text = render_gallery(GalleryQuery("x", None, "tiny", 4, "run"), hits, Silent())
    assert re.search(r"https?:|//[a-z]|url\(|@import|<link|<script", text) is None


def test_a_query_image_heads_the_page(hits: list[Hit], tiny_images: Path) -> None:
    page = page_of(hits, text="", image=tiny_images / "south" / "scene_00.jpg")
    assert len(page.all("img")) == 3
    assert "scene_00.jpg" in page.text


def test_one_hit_and_equal_scores_have_a_full_bar(hits: list[Hit]) -> None:
    for some in (hits[:1], [hits[0], Hit(2, replace(hits[0].image, image_id="b"), hits[0].score, ())]):
        assert {bar["style"] for bar in page_of(some).all("span") if "style" in bar} == {"width: 100.0%"}


def test_a_lone_surrogate_does_not_stop_the_page(hits: list[Hit], tmp_path: Path) -> None:
    query = GalleryQuery("a\ud800b", None, "tiny", 4, "run")
    write_text(tmp_path / "g.html", render_gallery(query, hits, Silent()))
    assert "a?b" in (tmp_path / "g.html").read_text(encoding="utf-8")


def test_score_bars_start_at_zero(hits: list[Hit]) -> None:
    image = hits[0].image
    some = [Hit(1, image, 0.8, ()), Hit(2, image, 0.2, ()), Hit(3, image, -0.1, ())]
    page = page_of(some)
    widths = [bar["style"] for bar in page.all("span") if "style" in bar]
    assert widths == ["width: 100.0%", "width: 25.0%", "width: 0.0%"]
    assert "bars start at 0" in page.text
