"""A SigLIP as transformers stores it gives the same features in open_clip's parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cmpagl_core.encoders.clip_checkpoint import siglip_state

WIDTH, SIDE, PATCH, CONTEXT, WORDS = 32, 32, 8, 6, 40


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    from transformers import SiglipConfig, SiglipModel

    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": WORDS, "max_position_embeddings": CONTEXT, "hidden_act": "gelu"}
    vision = {**shape, "image_size": SIDE, "patch_size": PATCH, "hidden_act": "gelu"}
    torch.manual_seed(0)
    model: nn.Module = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    for parameter in model.parameters():  # none may be zero, or a wrong place would not be seen
        nn.init.normal_(parameter, std=0.2)
    return model


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_images_have_the_same_features(theirs: nn.Module) -> None:
    from timm.models.vision_transformer import VisionTransformer

    ours = VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2, class_token=False, global_pool="map",
        num_classes=0,
    ).eval()  # fmt: skip
    ours.load_state_dict(part(siglip_state(theirs.state_dict()), "visual.trunk."))
    pixel_values = torch.randn(3, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = theirs.vision_model(pixel_values).pooler_output  # type: ignore[operator]
        assert torch.allclose(ours(pixel_values), expected, atol=1e-4)


def test_texts_have_the_same_features(theirs: nn.Module) -> None:
    from open_clip.transformer import TextTransformer

    ours = TextTransformer(
        context_length=CONTEXT, vocab_size=WORDS, width=WIDTH, heads=2, layers=2, output_dim=WIDTH,
        no_causal_mask=True, proj_bias=True, pool_type="last", norm_layer=lambda size: nn.LayerNorm(size, eps=1e-6),
    ).eval()  # fmt: skip
    ours.load_state_dict(part(siglip_state(theirs.state_dict()), "text."))
    tokens = torch.randint(0, WORDS, (4, CONTEXT))
    with torch.inference_mode():
        expected = theirs.text_model(tokens).pooler_output  # type: ignore[operator]
        assert torch.allclose(ours(tokens), expected, atol=1e-4)


def test_the_scales_are_scalars(theirs: nn.Module) -> None:
    state = siglip_state(theirs.state_dict())
    assert state["logit_scale"].shape == state["logit_bias"].shape == ()
