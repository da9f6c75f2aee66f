"""The summary's counts against formulas, the built model and published figures."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.summary import summarise
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import override_recipe

PLAIN = Recipe.model_validate({"image_encoder": {"global_window": False}})


def test_parameters_are_those_of_the_built_model() -> None:
    small = Recipe.model_validate(
        {
            "data": {"image_size_px": 64},
            "image_encoder": {"size": "custom", "width": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
            "text_encoder": {"size": "tiny"},
        }
    )
    backbone = (
        "image_encoder.backbone=resnet10t",
        "image_encoder.backbone_strides=[32]",
        "image_encoder.depths=[0,0,0,1]",
    )
    for recipe in (small, override_recipe(small, backbone)):
        model = build_model(recipe, 50)
        *rows, total = summarise(recipe, 50)
        assert total.parameters == sum(one.numel() for one in model.parameters())
        assert total.trained == sum(one.numel() for one in model.parameters() if one.requires_grad)
        assert total.flops == sum(row.flops for row in rows)


def test_swin_tiny_costs_what_its_paper_says() -> None:
    rows = {row.part: row for row in summarise(PLAIN, 30522)}
    swin = [row for name, row in rows.items() if name == "backbone" or name.startswith("Gswin")]
    assert sum(row.flops for row in swin) / 2 == pytest.approx(4.5e9, rel=0.01)  # the paper counts multiply-adds
    assert sum(row.parameters for row in swin) == pytest.approx(28.3e6 - 0.77e6, rel=0.005)  # without its classifier


def test_bert_costs_what_its_shapes_say() -> None:
    rows = {row.part: row for row in summarise(PLAIN, 30522, caption_tokens=20)}
    hidden, inner, length, images = 768, 3072, 20, 50
    block = 2 * length * (4 * hidden * hidden + 2 * hidden * inner) + 4 * length * length * hidden
    assert rows["text half"].flops == 6 * block
    cross = 2 * (2 * length + 2 * images) * hidden * hidden + 4 * length * images * hidden
    assert rows["fusion half"].flops == 6 * (block + cross) + 2 * images * 768 * hidden
    assert rows["MLM head"].flops == 2 * length * hidden * (hidden + 30522)
    assert rows["ITM head"].flops == 2 * hidden * 2


SMALL = {
    "data": {"image_size_px": 64},
    "image_encoder": {
        "size": "custom",
        "width": 16,
        "depths": [2, 2, 2, 2],
        "num_heads": [1, 1, 2, 2],
        "window_size": 4,
    },
    "text_encoder": {"size": "tiny"},
}
BACKBONE = (
    "image_encoder.backbone=resnet10t",
    "image_encoder.backbone_strides=[16, 32]",
    "image_encoder.depths=[0, 0, 2, 2]",
)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        BACKBONE,
        ("image_encoder.global_query=global",),
        ("image_encoder.branches=parallel", "image_encoder.global_window_source=avgpool"),
        ("image_encoder.shifted_windows=false", "image_encoder.global_window_source=random"),
        ("losses.mlm=0",),
    ],
    ids=["as it is", "backbone", "global query", "parallel", "random, no shifts", "no mlm"],
)
def test_the_counts_are_those_of_a_real_pass_of_the_whole_model(overrides: tuple[str, ...]) -> None:
    """torch's counter over real tensors, the model called as training calls it, against the rows' own passes."""
    recipe = override_recipe(Recipe.model_validate(SMALL), overrides)
    model = build_model(recipe, 50).eval()
    ids, mask = torch.randint(5, 50, (1, 9)), torch.ones(1, 9, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        images = model.encode_images(torch.randn(1, 3, 64, 64))
        only_images = counter.get_total_flops()
        fused = model.fuse(model.encode_texts(ids, mask), images.tokens)
        model.itm_logits(fused)
        if model.mlm_head is not None:
            model.mlm_logits(fused)
    *rows, total = summarise(recipe, 50, caption_tokens=9)
    assert counter.get_total_flops() == total.flops
    assert only_images == sum(row.flops for row in rows if row.part.startswith(("backbone", "Gswin", "image")))
