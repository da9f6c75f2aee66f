"""Captions say nothing that the truth does not: checked by a reader that shares no code with the grammar."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmpagl_core.synthetic.grammar import describe
from cmpagl_core.synthetic.kinds import CYCLE
from cmpagl_core.synthetic.scene import draw_scene
from cmpagl_core.synthetic.truth import SceneObject, SceneTruth

NUMBER = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "a": 1, "an": 1}
VAGUE = {"several": 3, "some": 2, "many": 9, "lots of": 9, "a lot of": 9}
COLOURS = ("white", "grey", "black", "red", "orange", "brown", "yellow", "green", "blue")
NOUNS = {
    "storage tanks?": "storage tank",
    "tanks?": "storage tank",
    "baseball (?:field|diamond)s?": "baseball field",
    "tennis courts?": "tennis court",
    "terminal buildings?": "terminal",
    "terminals?": "terminal",
    "(?:air)?planes?": "plane",
    "runways?": "runway",
    "boats?": "boat",
    "piers?": "pier",
    "bridges?": "bridge",
    "houses?": "house",
    "buildings?": "building",
    "roads?": "road",
    "cars?(?! park)": "car",
    "trees?": "tree",
    "rivers?": "river",
    "sea": "sea",
    "ocean": "sea",
    "beach": "beach",
    "airport": "airport",
    "harbour": "harbour",
    "port": "harbour",
    "car park": "car park",
    "parking lot": "car park",
    "forests?": "forest",
    "farmland": "farmland",
}
_COLOUR = "|".join(COLOURS)
_COUNT = "|".join([*VAGUE, *NUMBER])
_NOUN = "|".join(f"(?P<n{place}>{noun})" for place, noun in enumerate(NOUNS))
PHRASE = re.compile(rf"(?:\b(?P<count>{_COUNT}) )?(?:\b(?P<colour>{_COLOUR}) )?\b(?:{_NOUN})\b")
PAIR = re.compile(rf"\b(?P<one>{_COUNT}) (?P<c1>{_COLOUR}) and (?P<two>{_COUNT}) (?P<c2>{_COLOUR}) (?:{_NOUN})\b")


def name_of(found: re.Match[str]) -> str:
    return next(name for place, name in enumerate(NOUNS.values()) if found[f"n{place}"])


def count_of(truth: SceneTruth, name: str, colour: str | None) -> int:
    return sum(t.count for t in truth.objects if t.name == name and colour in (None, t.colour))


def agree(caption: str, truth: SceneTruth) -> None:
    """Fail unless every class, colour and count that the caption names is in the truth."""
    text = caption.lower()
    for found in PAIR.finditer(text):
        for count, colour in (("one", "c1"), ("two", "c2")):
            assert count_of(truth, name_of(found), found[colour]) == NUMBER[found[count]], (caption, truth)
    text = PAIR.sub(" ", text)
    text = re.sub(rf"pieces of (?:(?:{_COLOUR})(?: and (?:{_COLOUR}))?|colourful) farmland", "farmland", text)
    for found in PHRASE.finditer(text):
        name, colour, count = name_of(found), found["colour"], found["count"]
        there = count_of(truth, name, colour)
        assert there > 0, (caption, truth)
        if count in ("a", "an") and name in ("forest", "beach", "airport", "harbour", "car park", "farmland"):
            continue
        if count in NUMBER:
            assert there == NUMBER[count], (caption, truth)
        elif count is not None and name != "farmland":
            assert there >= VAGUE[count], (caption, truth)


@settings(max_examples=40, deadline=None)
@given(number=st.integers(0, 10_000), seed=st.integers(0, 2**31))
def test_counts_colours_and_classes_of_every_caption_are_true(number: int, seed: int) -> None:
    truth = draw_scene(number, seed, image_size_px=96).truth
    for caption in truth.captions:
        agree(caption, truth)


@settings(max_examples=25, deadline=None)
@given(number=st.integers(0, 10_000), seed=st.integers(0, 2**31))
def test_five_captions_differ_and_are_one_sentence_each(number: int, seed: int) -> None:
    captions = draw_scene(number, seed, image_size_px=96).truth.captions
    assert len({caption.lower() for caption in captions}) == len(captions) == 5
    for caption in captions:
        assert caption.endswith(".")
        assert "  " not in caption
        assert "{" not in caption
        assert len(caption.split()) <= 30


def test_the_reader_of_this_test_notices_a_wrong_count_colour_or_class() -> None:
    truth = draw_scene(5, seed=0, image_size_px=96).truth  # storage tanks
    tanks = next(thing for thing in truth.objects if thing.name == "storage tank")
    other = "red" if tanks.colour != "red" else "white"
    for wrong in (f"{'two' if tanks.count != 2 else 'three'} storage tanks", f"{other} tanks", "a harbour near tanks"):
        with pytest.raises(AssertionError):
            agree(wrong, truth)


def test_each_kind_is_worded_in_many_ways() -> None:
    for number, kind in enumerate(CYCLE[:8]):
        truth = draw_scene(number, seed=0, image_size_px=96).truth
        said = set()
        for seed in range(12):
            rng = np.random.Generator(np.random.PCG64(seed))
            said.update(describe(kind.scene, truth.objects, truth.relations, rng))
        assert len(said) >= 24, kind.name


def test_singular_and_plural_follow_the_count() -> None:
    one = (SceneObject("storage tank", 1, "white", ((1, 1, 9, 9),)),)
    three = (SceneObject("storage tank", 3, "white", ((1, 1, 9, 9),) * 3),)
    for seed in range(20):
        rng = np.random.Generator(np.random.PCG64(seed))
        assert all(re.search(r"\btank\b", caption) for caption in describe("storagetanks", one, (), rng))
        assert all(re.search(r"\btanks\b", caption) for caption in describe("storagetanks", three, (), rng))


def test_a_scene_without_its_main_thing_is_not_described() -> None:
    with pytest.raises(ValueError, match="'harbour' without any 'harbour'"):
        describe("harbour", (), (), np.random.Generator(np.random.PCG64(0)))
