"""The targets of `make fuzz` take their seeds, a few mutations of them, and what fuzzing once found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.targets import TARGETS, refuses_in_words

FOUND = {
    "query": (b"\0\0\0" + b"x" * 300 + b".png",),  # a name longer than a file may have
}
MUTATIONS = 15


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_and_a_few_mutations_are_refused_in_words(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    feed = target.make(tmp_path)
    seeds = target.seeds()
    for content in (*seeds, *FOUND.get(name, ())):
        refuses_in_words(feed, content)
    generator = np.random.default_rng(0)
    for _ in range(MUTATIONS):
        spoiled = bytearray(seeds[generator.integers(len(seeds))])
        for place in generator.integers(1, len(spoiled), 3):
            spoiled[place] = generator.integers(256)
        refuses_in_words(feed, bytes(spoiled))


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_seed_is_taken_so_that_what_follows_is_reached(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    target.make(tmp_path)(target.seeds()[0])
