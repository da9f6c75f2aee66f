"""ITM re-ranking with k = 32, both directions, against the same pairs through the fusion half one query at a time.

MiniLM's shape split 3 + 3 with random weights, image tokens of a Swin-T at 224 px, captions of RSICD where they are
beside the repository (else drawn), the same precision on both sides.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from _measure import PRECISION, median_s, report
from numpy.typing import NDArray

from cmpagl_core.device import autocast
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.galr import candidates
from cmpagl_core.ranking.itm import Candidates, choose_candidates, match_probabilities
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import LoadedModel

IMAGES, CAPTIONS, K = 48, 5, 32
TOKENS = 50  # 7 x 7 and their mean
RECIPE = """
image_encoder: {size: custom, width: 96, depths: [1, 1, 1, 1], num_heads: [3, 6, 12, 24]}
text_encoder: {size: minilm-l6}
train: {precision: bf16}
"""
ANNOTATIONS = Path(__file__).parent.parent.parent / "shared" / "data" / "annotations" / "dataset_rsicd.json"


def some_captions() -> list[str]:
    """Five captions each of some images, in file order."""
    if ANNOTATIONS.is_file():
        images = [image for image in json.loads(ANNOTATIONS.read_text())["images"] if image["split"] == "test"]
        chosen = images[:: len(images) // IMAGES][:IMAGES]
        return [sentence["raw"] for image in chosen for sentence in image["sentences"][:CAPTIONS]]
    words = [
        "many",
        "green",
        "trees",
        "are",
        "in",
        "two",
        "sides",
        "of",
        "a",
        "curved",
        "river",
        "near",
        "the",
        "large",
        "white",
        "airport",
    ]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, rng.integers(6, 18))) for _ in range(IMAGES * CAPTIONS)]


def random_model(captions: list[str]) -> LoadedModel:
    recipe: Recipe = parse_recipe(RECIPE, "the benchmark's recipe")
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, captions)
    model = use_kernels(build_model(recipe, tokenizer.vocab_size, pretrained=False), torch.device("cpu"))
    return LoadedModel(model.eval(), tokenizer, recipe, "", torch.device("cpu"))


def one_query_at_a_time(
    loaded: LoadedModel, image_tokens: NDArray[np.float16], captions: list[str], scores: ScoreMatrix
) -> dict[tuple[int, int], float]:
    """Every image with its k texts, every text with its k images: tokenize, encode, fuse, as papers' codes do."""
    found = {}
    for matrix, of_image in ((scores, True), (scores.transposed(), False)):
        row, col, _ = candidates(matrix, K)
        for query in range(matrix.shape[0]):
            items = col[row == query]
            images = np.full(len(items), query) if of_image else items
            texts = items if of_image else np.full(len(items), query)
            probabilities = fused(loaded, image_tokens[images], [captions[text] for text in texts])
            found.update(zip(zip(images.tolist(), texts.tolist(), strict=True), probabilities, strict=True))
    return found


def fused(loaded: LoadedModel, image_tokens: NDArray[np.float16], texts: list[str]) -> list[float]:
    batch = loaded.tokenizer(texts)
    tokens = torch.from_numpy(image_tokens.astype(np.float32))
    with torch.inference_mode(), autocast(loaded.device, loaded.recipe.train.precision):
        states = loaded.model.fuse((batch.input_ids, batch.attention_mask), tokens)
        logits = loaded.model.itm_logits(states)
    found: list[float] = logits.float().softmax(dim=1)[:, 1].tolist()
    return found


def main() -> int:
    torch.set_num_threads(2)
    captions = some_captions()
    loaded = random_model(captions)
    rng = np.random.default_rng(0)
    width = loaded.model.image_encoder.width
    image_tokens = rng.standard_normal((IMAGES, TOKENS, width)).astype(np.float16)
    texts, text_of = unique_texts(captions)
    of_text = rng.standard_normal((len(texts), 64))
    scores = ScoreMatrix.from_features(rng.standard_normal((IMAGES, 64)), of_text[text_of])

    def ours() -> tuple[Candidates, NDArray[np.float32]]:
        pairs = choose_candidates(scores, text_of, len(texts), K)
        return pairs, match_probabilities(loaded, image_tokens, texts, pairs, Silent())

    pairs, probabilities = ours()
    known = {(image, text): value for image, text, value in zip(pairs.image, pairs.text, probabilities, strict=True)}
    theirs = one_query_at_a_time(loaded, image_tokens, captions, scores)
    worst = max(abs(value - known[image, text_of[text]]) for (image, text), value in theirs.items())
    if worst > 0.02:
        print(f"the two disagree by {worst}", file=sys.stderr)
        return 1
    name = f"itm, k = {K}, both directions, {IMAGES} images, {len(captions)} captions, {PRECISION}"
    peer_value = median_s(lambda: one_query_at_a_time(loaded, image_tokens, captions, scores))
    return 0 if report(name, median_s(ours), "s", 4.0, "one query at a time, in file order", peer_value) else 1


if __name__ == "__main__":
    sys.exit(main())
