"""ITM re-ranking: each candidate pair once, with the probability that the plain model gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.encoders.encode import encode_captions, encode_image_tokens, encode_images
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.errors import UsageError
from cmpagl_core.imagery.images import read_pixel_values
from cmpagl_core.progress import Advance, Silent
from cmpagl_core.ranking import itm
from cmpagl_core.ranking.itm import ALL_PAIRS, choose_candidates, itm_scores, match_probabilities, pack_texts
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.runs import LoadedModel, open_run


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedModel:
    return open_run(tiny_run).load()


@pytest.fixture(scope="module")
def truth(loaded: LoadedModel, split: DataSplit) -> NDArray[np.float64]:
    """Probability of each pair; the ITM head is stretched first, so that these differ clearly."""
    head = loaded.model.itm_head
    assert head is not None
    logits = logits_one_by_one(loaded, split)
    margin = logits[..., 1] - logits[..., 0]
    stretch, middle = 2.0 / margin.std(), margin.mean()
    with torch.no_grad():
        head.weight.mul_(stretch)
        head.bias.mul_(stretch)[1] -= stretch * middle
    return torch.sigmoid(stretch * (margin - middle)).double().numpy()


@pytest.fixture(scope="module")
def split(tiny_prepared: Path) -> DataSplit:
    return open_prepared(tiny_prepared).split("train")


@pytest.fixture(scope="module")
def cosines(loaded: LoadedModel, split: DataSplit) -> ScoreMatrix:
    images = encode_images(loaded, split.images, Silent())
    return ScoreMatrix.from_features(images, encode_captions(loaded, split.captions, Silent()))


def whole(scores: ScoreMatrix) -> NDArray[np.floating]:
    return np.concatenate([tile for _, tile in scores.row_tiles()])


def logits_one_by_one(loaded: LoadedModel, split: DataSplit) -> torch.Tensor:
    """Each image with each caption, alone, without any cache: [images, captions, 2]."""
    size = loaded.recipe.data.image_size_px
    found = torch.empty((len(split), len(split.captions), 2))
    with torch.inference_mode():
        for row, path in enumerate(split.paths):
            tokens = loaded.model.encode_images(read_pixel_values(path, size)[None]).tokens.half().float()
            for col, caption in enumerate(split.captions):
                batch = loaded.tokenizer([caption])
                fused = loaded.model.fuse((batch.input_ids, batch.attention_mask), tokens)
                found[row, col] = loaded.model.itm_logits(fused)[0]
    return found


class Recorder(Silent):
    """Keeps what was said and how far each bar went."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: dict[str, list[int]] = {}

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        counts = self.done.setdefault(description, [0, total])

        def advance(done: int) -> None:
            counts[0] += done

        yield advance


def test_all_pairs_are_scored_as_one_by_one_and_the_cosines_left_out(
    loaded: LoadedModel, split: DataSplit, cosines: ScoreMatrix, truth: NDArray[np.float64]
) -> None:
    progress = Recorder()
    scores = whole(itm_scores(loaded, split, cosines, ALL_PAIRS, progress))
    assert scores == pytest.approx(truth, abs=1e-4)
    assert truth.std() > 0.01
    different = len(set(split.captions))
    assert progress.done["match pairs"] == [len(split) * different] * 2
    assert progress.said == [
        f"itm: {len(split) * different:,} pairs of {len(split)} images and {different} distinct texts"
    ]


def test_candidates_get_their_probability_on_top_and_all_others_keep_their_cosine(
    loaded: LoadedModel, split: DataSplit, cosines: ScoreMatrix, truth: NDArray[np.float64]
) -> None:
    base, k = whole(cosines), 2
    found = whole(itm_scores(loaded, split, cosines, k, Silent()))
    texts, text_of = unique_texts(split.captions)
    first = [int(np.flatnonzero(text_of == text)[0]) for text in range(len(texts))]
    expected = base.copy()
    for row in range(len(split)):
        for col, text in enumerate(text_of):
            of_image = sorted(base[row, first], reverse=True)[k - 1]
            of_text = sorted(base[:, first[text]], reverse=True)[k - 1]
            if base[row, col] >= of_image or base[row, col] >= of_text:
                expected[row, col] += truth[row, col]
    assert found == pytest.approx(expected, abs=1e-4)
    assert (found == base).any()


def test_identical_captions_tie_exactly(loaded: LoadedModel, split: DataSplit, cosines: ScoreMatrix) -> None:
    scores = whole(itm_scores(loaded, split, cosines, 3, Silent()))
    twins = [col for col, text in enumerate(split.captions) if text == split.captions[0]]
    assert len(twins) == 2
    assert (scores[:, twins[0]] == scores[:, twins[1]]).all()


def test_k_is_clamped_to_the_gallery(loaded: LoadedModel, split: DataSplit, cosines: ScoreMatrix) -> None:
    texts, text_of = unique_texts(split.captions)
    assert len(choose_candidates(cosines, text_of, len(texts), 10_000)) == len(split) * len(texts)


def test_candidates_do_not_depend_on_tiles(split: DataSplit, cosines: ScoreMatrix) -> None:
    texts, text_of = unique_texts(split.captions)
    plain = choose_candidates(cosines, text_of, len(texts), 3)
    tiled = choose_candidates(ScoreMatrix(cosines.source, budget_bytes=1), text_of, len(texts), 3)
    assert (plain.image == tiled.image).all()
    assert (plain.text == tiled.text).all()


def test_few_texts_at_once_give_the_same(
    loaded: LoadedModel,
    split: DataSplit,
    cosines: ScoreMatrix,
    truth: NDArray[np.float64],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(itm, "_TEXTS_AT_ONCE", 4)
    monkeypatch.setattr(itm, "_IMAGES_AT_ONCE", 5)
    monkeypatch.setattr(itm, "_TOKENS_PER_PASS", 20)
    assert whole(itm_scores(loaded, split, cosines, ALL_PAIRS, Silent())) == pytest.approx(truth, abs=1e-4)


def test_the_lower_half_sees_each_different_text_once_and_each_image_is_cached_once(
    loaded: LoadedModel, split: DataSplit, cosines: ScoreMatrix, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, int] = {"texts": 0, "images": 0}
    encode, cache = loaded.model.encode_texts, loaded.model.cross_attention_cache
    monkeypatch.setattr(
        loaded.model, "encode_texts", lambda ids, mask: seen.update(texts=seen["texts"] + len(ids)) or encode(ids, mask)
    )
    monkeypatch.setattr(
        loaded.model, "cross_attention_cache", lambda x: seen.update(images=seen["images"] + len(x)) or cache(x)
    )
    texts, text_of = unique_texts(split.captions)
    pairs = choose_candidates(cosines, text_of, len(texts), 4)
    tokens = encode_image_tokens(loaded, split.images, tmp_path / "tokens.npy", Silent())
    match_probabilities(loaded, tokens, texts, pairs, Silent())
    assert seen == {"texts": len(texts), "images": len(split)}


def test_packed_texts_are_the_texts(loaded: LoadedModel) -> None:
    texts = ["a", "a square of kind 3 and more", "field"]
    packed = pack_texts(loaded, texts)
    states, mask = packed.gather(np.array([2, 1]))
    alone = loaded.tokenizer([texts[1]])
    expected = loaded.model.encode_texts(alone.input_ids, alone.attention_mask).tokens[0]
    assert mask.sum(dim=1).tolist() == [3, len(expected)]
    assert torch.allclose(states[1], expected, atol=1e-5)


def test_a_negative_k_is_refused(loaded: LoadedModel, split: DataSplit, cosines: ScoreMatrix) -> None:
    with pytest.raises(UsageError, match=r"itm_k = -1 must be 0 \(every pair\) or more"):
        itm_scores(loaded, split, cosines, -1, Silent())
