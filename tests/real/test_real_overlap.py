"""RSICD and RSITMD share captions, and the notice counts them, on the real annotation files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.evaluation.protocol import find_overlap, seen_of

pytestmark = pytest.mark.real


def annotated(real_data: Path, name: str, split: str) -> DataSplit:
    """A split without images, of which the hashes are then not known."""
    content = json.loads((real_data / "annotations" / f"dataset_{name}.json").read_text())
    images = [image for image in content["images"] if image["split"] == split]
    texts = [sentence["raw"] for image in images for sentence in image["sentences"]]
    return DataSplit(
        dataset=name,
        name=split,
        image_ids=tuple(image["filename"] for image in images),
        paths=tuple(Path(image["filename"]) for image in images),
        image_sha256=("",) * len(images),
        scenes=("",) * len(images),
        captions=tuple(texts),
        caption_ids=tuple(map(str, range(len(texts)))),
        caption_image=np.repeat(np.arange(len(images)), [len(image["sentences"]) for image in images]),
    )


def words(text: str) -> tuple[str, ...]:
    return tuple("".join(sign if sign.isalnum() else " " for sign in text.lower()).split())


@pytest.mark.parametrize(("trained", "tested", "least"), [("rsitmd", "rsicd", 1_150), ("rsicd", "rsitmd", 200)])
def test_captions_that_both_sets_hold_are_counted(real_data: Path, trained: str, tested: str, least: int) -> None:
    train, test = annotated(real_data, trained, "train"), annotated(real_data, tested, "test")
    known = {words(text) for text in train.captions}
    by_hand = sum(words(text) in known for text in test.captions)
    found = find_overlap(seen_of(train, annotated(real_data, trained, "val")), trained, test)
    assert found is not None
    assert (found.images, found.captions, found.tested_captions) == (0, by_hand, len(test.captions))
    assert by_hand > least
    assert f"trained on {trained}, which shares 0 of" in found.sentences("mine")[0]
