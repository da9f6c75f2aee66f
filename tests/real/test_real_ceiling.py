"""What duplicate captions do to published-style numbers, on the real annotation files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cmpagl_core.datasets.same_caption import caption_classes
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.ranking.scores import ScoreMatrix

pytestmark = pytest.mark.real


@pytest.mark.parametrize(("name", "ceiling"), [("ucm", 38.4), ("sydney", 50.7), ("rsicd", 93.1)])
def test_an_oracle_of_captions_meets_the_ceiling(real_data: Path, name: str, ceiling: float) -> None:
    """Nobody can do better than to rank images by how many of their captions have the words of the query."""
    content = json.loads((real_data / "annotations" / f"dataset_{name}.json").read_text())
    images = [image for image in content["images"] if image["split"] == "test"]
    owner = np.repeat(np.arange(len(images)), [len(image["sentences"]) for image in images])
    classes = caption_classes([sentence["raw"] for image in images for sentence in image["sentences"]])
    counts = Counter(zip(classes.tolist(), owner.tolist(), strict=True))
    most: dict[int, int] = {}
    for (text, _), count in counts.items():
        most[text] = max(count, most.get(text, 0))
    knows = np.zeros((len(images), len(most)), np.float32)
    for (text, image), count in counts.items():
        knows[image, text] = count
    scores = ScoreMatrix.from_array(knows[:, classes])
    plain = recall(scores, Matches.own(owner, len(images)))
    assert plain.t2i.r1 == pytest.approx(100 * sum(most.values()) / len(owner))
    assert plain.t2i.r1 == pytest.approx(ceiling, abs=0.05)
    aware = recall(scores, Matches.identical(owner, len(images), classes))
    assert aware.mr == pytest.approx(100.0)
