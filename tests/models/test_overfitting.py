"""A small Gswin and a small BERT overfit 32 pairs quickly: no gradient path between them is cut."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmpagl_core.losses import itc_loss
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.recipe import Recipe

PAIRS = 32
STEPS = 200
SIDE = 32  # pixels: 8 x 8 tokens, four windows in the first stage
RECIPE = Recipe.model_validate(
    {
        "data": {"image_size_px": SIDE},
        "image_encoder": {
            "size": "custom",
            "width": 16,
            "depths": [2, 2, 2, 1],
            "num_heads": [1, 2, 4, 4],
            "window_size": 4,
            "drop_path": 0.0,
        },
        "text_encoder": {"size": "tiny", "dropout": 0.0},
        "fusion_encoder": {"enabled": False},
        "losses": {"itm": 0.0, "mlm": 0.0, "embed_dim": 64},
    }
)


def steps_until_known_by_heart(pixel_values: Tensor, captions: list[str]) -> int:
    """Steps of AdamW until every image's nearest caption is its own and the other way round; STEPS if never.

    Fails when that takes more than a minute of one core, however busy the machine is.
    """
    started_s = time.process_time()
    tokenizer = load_tokenizer(RECIPE.text_encoder, 32, captions)
    model = build_model(RECIPE, tokenizer.vocab_size).train()
    tokens, positives = tokenizer(captions), torch.eye(PAIRS, dtype=torch.bool)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    own = torch.arange(PAIRS)
    for step in range(STEPS):
        images = model.encode_images(pixel_values).features
        texts = model.encode_texts(tokens.input_ids, tokens.attention_mask).features
        logits = images @ texts.t() * model.logit_scale.exp()
        if torch.equal(logits.argmax(dim=0), own) and torch.equal(logits.argmax(dim=1), own):
            assert time.process_time() - started_s < 60
            return step
        optimiser.zero_grad()
        itc_loss(logits, positives).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.clamp_logit_scale()
    return STEPS


@pytest.mark.slow
def test_thirty_two_random_pairs_are_learnt_by_heart() -> None:
    pixel_values = torch.randn(PAIRS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    captions = [f"{'abcdefgh'[index % 8]} thing beside {'stuvwxyz'[index // 8]} places" for index in range(PAIRS)]
    assert steps_until_known_by_heart(pixel_values, captions) < STEPS


@pytest.mark.real
def test_thirty_two_real_pairs_are_learnt_by_heart(real_data: Path) -> None:
    from cmpagl_core.imagery.images import open_image, to_pixel_values

    entries = json.loads((real_data / "annotations" / "dataset_ucm.json").read_text())["images"]
    captions: dict[str, Path] = {}
    for entry in entries[::50]:
        caption = entry["sentences"][0]["raw"]
        captions.setdefault(caption, real_data / "ucm" / "images" / f"{Path(entry['filename']).stem}.jpg")
    pairs = list(captions.items())[:PAIRS]
    assert len(pairs) == PAIRS
    pixel_values = torch.stack([to_pixel_values(open_image(path), SIDE) for _, path in pairs])
    assert steps_until_known_by_heart(pixel_values, [caption for caption, _ in pairs]) < STEPS
