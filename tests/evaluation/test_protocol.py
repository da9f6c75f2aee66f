"""Stamps keep numbers of different things apart, and nothing is chosen on the test split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.datasets.same_caption import caption_key
from cmpagl_core.errors import GuardError
from cmpagl_core.evaluation.protocol import (
    Overlap,
    Stamp,
    find_overlap,
    matches_of,
    require_not_test,
    require_one_column,
    seen_of,
)

STAMP = Stamp(
    protocol="rsitr",
    dataset="ucm",
    split="test",
    split_sha256="a" * 64,
    manifest_sha256="b" * 64,
    images=210,
    captions=1050,
    model="base",
    model_sha256="c" * 64,
    stages=("cosine",),
)


def a_split(name: str, images: list[str], captions: list[str]) -> DataSplit:
    count = len(images)
    return DataSplit(
        dataset=name,
        name="train",
        image_ids=tuple(f"{name}{row}" for row in range(count)),
        paths=tuple(Path(f"{row}.jpg") for row in range(count)),
        image_sha256=tuple(images),
        scenes=("",) * count,
        captions=tuple(captions),
        caption_ids=tuple(str(row) for row in range(len(captions))),
        caption_image=np.arange(len(captions)) % count,
    )


def test_other_models_and_other_stages_may_stand_in_one_column() -> None:
    other = replace(STAMP, model="mine", model_sha256="d" * 64, stages=("cosine", "itm"), itm_k=16)
    assert require_one_column({"base": STAMP, "mine": other}) == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("protocol", "duplicate-aware", r"protocol is rsitr \(base\), duplicate-aware \(mine\)"),
        ("split", "val", r"split is test \(base\), val \(mine\)"),
        ("split_sha256", "e" * 64, r"split sha256 is a{16} \(base\), e{16} \(mine\)"),
        ("images", 211, r"images is 210 \(base\), 211 \(mine\)"),
        ("dataset", "rsicd", r"dataset is ucm \(base\), rsicd \(mine\)"),
    ],
)
def test_other_data_or_protocols_may_not_unless_told_to(field: str, value: str, words: str) -> None:
    stamps = {"base": STAMP, "mine": replace(STAMP, **{field: value})}  # type: ignore[arg-type]
    with pytest.raises(GuardError, match=f"results are not comparable: {words}"):
        require_one_column(stamps)
    assert len(require_one_column(stamps, mix=True)) == 1


def test_nothing_is_chosen_on_the_test_split() -> None:
    require_not_test("val", "gammas")
    with pytest.raises(GuardError, match="choosing gammas on the test split would make its recalls meaningless"):
        require_not_test("test", "gammas")


def test_shared_images_and_captions_are_counted_and_said() -> None:
    train = a_split("rsicd", ["p1", "p2", "p3"], ["An airport, near the sea.", "a farm", "a river"])
    seen = seen_of(train, a_split("rsicd", ["p4"], ["a bay"]))
    tested = a_split("rsitmd", ["p3", "p9"], ["an  airport near the sea", "A FARM!", "a bridge"])
    found = find_overlap(seen, "rsicd", tested)
    assert found == Overlap("rsicd", 1, 2, 2, 3)
    assert found.sentences("mine") == (
        "trained on rsicd, which shares 1 of 2 images and 2 of 3 captions with the test set",
    )
    chosen = find_overlap(seen, "rsicd", a_split("rsitmd", ["p4", "p9"], ["a bridge"]))
    assert chosen == Overlap("rsicd", 0, 0, 2, 1, chosen_on=1)
    assert chosen.sentences("mine") == ("mine was chosen on 1 of these 2 images, so these recalls are biased upwards",)


def test_captions_that_one_set_shares_with_itself_are_no_news_but_images_are() -> None:
    seen = seen_of(a_split("ucm", ["p1", "p2"], ["a farm", "a river"]), a_split("ucm", ["p3"], ["a bay"]))
    assert find_overlap(seen, "ucm", a_split("ucm", ["p8", "p9"], ["a farm", "a river"])) is None
    twice = find_overlap(seen, "ucm", a_split("ucm", ["p2", "p9"], ["a farm", "a river"]))
    assert twice == Overlap("ucm", 1, None, 2, 2)


def test_captions_are_compared_in_lower_case_without_punctuation() -> None:
    assert caption_key(" There are TWO tennis-courts , here.\n") == "there are two tennis courts here"


def test_an_identical_caption_is_a_match_under_one_protocol_only() -> None:
    owner, captions = np.array([0, 1, 1]), ["a farm", "a  farm", "a road"]
    own = matches_of("rsitr", owner, 2, captions)
    aware = matches_of("duplicate-aware", owner, 2, captions)
    assert list(zip(own.query.tolist(), own.item.tolist(), strict=True)) == [(0, 0), (1, 1), (1, 2)]
    assert list(zip(aware.query.tolist(), aware.item.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
