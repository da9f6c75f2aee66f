"""Which tokens meet in a window, against a mask that knows nothing but coordinates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cmpagl_core.models.global_window import GlobalQueryAttention
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.windows import WindowAttention, WindowGeometry
from cmpagl_core.recipe import ImageEncoderPart


def neighbours(side: int, window: int, shift: int) -> Tensor:
    """Whether tokens of a square map share a window of a grid that begins `shift` tokens in: [side^2, side^2]."""
    cell = torch.div(torch.arange(side) - shift, window, rounding_mode="floor")  # what is above the grid is its own row
    cells = torch.stack(torch.meshgrid(cell, cell, indexing="ij"), dim=-1).view(-1, 2)
    return (cells[:, None] == cells[None, :]).all(dim=-1)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("image_size_px", [224, 256, 288, 384])
def test_tokens_meet_only_where_their_coordinates_share_a_window(image_size_px: int, shifted: bool) -> None:
    for map_size in (image_size_px // stride for stride in (4, 8, 16, 32)):
        geometry = WindowGeometry(map_size, 7, shifted)
        shift = 3 if shifted and map_size > 7 else 0
        near = neighbours(map_size, 7, shift)
        number = torch.arange(1, map_size**2 + 1, dtype=torch.float32).view(1, map_size, map_size, 1)
        met = torch.zeros_like(near)
        for index, window in enumerate(geometry.cut(number).squeeze(-1).long()):
            real = window > 0  # 0 pads the map
            allowed = torch.ones(49, 49, dtype=torch.bool) if geometry.mask is None else geometry.mask[index] == 0
            tokens = window[real] - 1
            met[tokens[:, None], tokens[None, :]] |= allowed[real][:, real]
        assert torch.equal(met, near)
        assert torch.equal(geometry.uncut(geometry.cut(number)), number)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("map_size", [8, 9, 12, 14, 16, 18])  # in windows of 7: all but 14 are padded
def test_attention_in_windows_equals_attention_over_the_whole_map_with_that_mask(map_size: int, shifted: bool) -> None:
    width, window, side = 4, 7, -(-map_size // 7) * 7
    torch.manual_seed(0)
    geometry = WindowGeometry(map_size, window, shifted)
    own, asked = WindowAttention(width, 1, geometry, dropout=0.0), GlobalQueryAttention(width, 1, geometry, dropout=0.0)
    x, global_window = torch.randn(1, map_size, map_size, width).double(), torch.randn(1, window**2, width).double()
    shift = 3 if shifted else 0
    padded = nn.functional.pad(x[0], (0, 0, 0, side - map_size, 0, side - map_size)).view(-1, width)
    row, column = torch.arange(side**2) // side, torch.arange(side**2) % side
    apart = (row[:, None] - row + window - 1, column[:, None] - column + window - 1)
    near, inside = neighbours(side, window, shift), 2 * window - 1
    offset = (apart[0].clamp(0, inside - 1) * inside + apart[1].clamp(0, inside - 1))[..., None]
    place = (row - shift) % window * window + (column - shift) % window  # in its window, for the global window's query
    for layer in (own.double(), asked.double()):
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        query, key, value = (
            own.qkv(padded).chunk(3, dim=-1)
            if layer is own
            else (asked.query(global_window)[0, place], *asked.key_value(padded).chunk(2, dim=-1))
        )
        scores = query @ key.T / math.sqrt(width) + layer.relative_position_bias_table[offset.squeeze(-1), 0]
        weights = scores.masked_fill(~near, -math.inf).softmax(dim=-1)
        expected = layer.proj(weights @ value).view(side, side, width)[:map_size, :map_size]
        found = own(x) if layer is own else asked(x, global_window)
        assert torch.allclose(found[0], expected, atol=1e-10)


@pytest.mark.parametrize("branches", ["sequential", "parallel"])
def test_the_far_edge_of_a_padded_map_does_not_reach_the_near_one(branches: str) -> None:
    cfg = ImageEncoderPart(
        size="custom", width=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 1, 1), global_window=False, branches=branches
    )
    stage = GswinEncoder(cfg, 256).layers["2"].double().eval()  # 16 x 16 tokens in windows of 7
    stage.downsample = None
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 16, 16, 32).double().requires_grad_()
    (reached,) = torch.autograd.grad(stage(x)[0, 0, 0].square().sum(), x)
    touched = reached[0].abs().sum(dim=-1) > 1e-12
    assert touched[0, 0]
    assert not touched[10:].any()
    assert not touched[:, 10:].any()
