"""10,000 RSICD captions through the text half: encode_captions against one BertModel call per 32 in file order.

MiniLM's shape, the three layers of the text half on both sides. The peer runs in fp32, as it comes; a line beside says
what autocast gives it where the processor has instructions for bf16. The captions lie beside the repository.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from _measure import PRECISION, in_turns_s, median_s, note, report
from numpy.typing import NDArray
from transformers import BertConfig, BertModel

from cmpagl_core.device import autocast
from cmpagl_core.encoders.encode import encode_captions
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import LoadedModel

CAPTIONS, BATCH = 10_000, 32
ANNOTATIONS = Path(__file__).parent.parent.parent / "shared" / "data" / "annotations" / "dataset_rsicd.json"
RECIPE = """
image_encoder: {size: custom, width: 16, depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8]}
text_encoder: {size: minilm-l6}
train: {precision: bf16}
"""


def naive_features(
    model: BertModel, loaded: LoadedModel, captions: list[str], precision: str = "fp32"
) -> NDArray[np.float32]:
    """As most public codes do it: batches of 32 in file order, padded to the longest, every caption."""
    rows = []
    with torch.inference_mode(), autocast(loaded.device, precision):
        for start in range(0, len(captions), BATCH):
            tokens = loaded.tokenizer(captions[start : start + BATCH])
            hidden = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
            projected = loaded.model.text_projection(hidden[:, 0])
            rows.append(torch.nn.functional.normalize(projected.float(), dim=-1))
    return np.asarray(torch.cat(rows).numpy())


def main() -> int:
    """Print one line, after checking that both give the same features."""
    torch.set_num_threads(2)
    images = json.loads(ANNOTATIONS.read_text(encoding="utf-8"))["images"]
    captions = [sentence["raw"] for image in images for sentence in image["sentences"]][:CAPTIONS]
    recipe = parse_recipe(RECIPE, "the benchmark")
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, captions)
    model = use_kernels(build_model(recipe, tokenizer.vocab_size), torch.device("cpu")).eval()
    loaded = LoadedModel(model, tokenizer, recipe, "", torch.device("cpu"))
    shape, half = model.text_encoder.shape, model.text_encoder
    config = BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=len(half.layers),
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.intermediate_size,
    )
    peer = BertModel(config, add_pooling_layer=False).eval()
    peer.embeddings.load_state_dict(half.embeddings.state_dict())
    peer.encoder.layer.load_state_dict(half.layers.state_dict())
    cosines = (encode_captions(loaded, captions, Silent()) * naive_features(peer, loaded, captions)).sum(axis=1)
    assert cosines.min() > 0.999, "not the same features as the peer"
    ours_s, peer_s = in_turns_s(
        lambda: encode_captions(loaded, captions, Silent()), lambda: naive_features(peer, loaded, captions)
    )
    title = "text encoding, 10,000 RSICD captions"
    met = report(title, ours_s, "s", 3.0, "BertModel, fp32, 32 captions a call in file order", peer_s)
    if PRECISION == "bf16":
        note(f"{title}: the peer in bf16", median_s(lambda: naive_features(peer, loaded, captions, "bf16")), "s")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
