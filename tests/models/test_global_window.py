"""The global window: how it is made, and its attention against loops over windows and heads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cmpagl_core.models.global_window import (
    AveragePoolGenerator,
    ConvGenerator,
    GlobalQueryAttention,
    LocalQueryAttention,
    RandomGenerator,
)
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.windows import WindowAttention, WindowGeometry
from cmpagl_core.recipe import ImageEncoderPart


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.double().eval()


def one_head(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for [N, d] matrices, one query at a time."""
    rows = []
    for index in range(len(query)):
        scores = key @ query[index] / math.sqrt(query.shape[1])
        if bias is not None:
            scores = scores + bias[index]
        rows.append(torch.softmax(scores, dim=0) @ value)
    return torch.stack(rows)


def test_glca_equals_a_loop_over_windows_and_heads() -> None:
    width, heads, window, side = 12, 3, 4, 8
    attention = scrambled(LocalQueryAttention(width, heads, dropout=0.0))
    x = torch.randn(2, side, side, width, dtype=torch.float64)
    global_window = torch.randn(2, window * window, width, dtype=torch.float64)
    query, pair = attention.query(x), attention.key_value(global_window)
    expected, depth = torch.zeros_like(x), width // heads
    for image in range(2):
        for top in range(0, side, window):
            for left in range(0, side, window):
                block = (image, slice(top, top + window), slice(left, left + window))
                local = query[block].reshape(-1, width)
                joined = [
                    one_head(
                        local[:, head * depth : (head + 1) * depth],
                        pair[image, :, head * depth : (head + 1) * depth],
                        pair[image, :, width + head * depth : width + (head + 1) * depth],
                    )
                    for head in range(heads)
                ]
                expected[block] = attention.proj(torch.cat(joined, dim=1)).view(window, window, width)
    assert torch.allclose(attention(x, global_window), expected, atol=1e-12)


def windows_of(side: int, window: int, shift: int) -> list[list[tuple[int, int]]]:
    """Positions of each window's tokens in reading order, each with the position it really comes from."""
    starts = range(0, side, window)
    return [
        [((top + r + shift) % side, (left + c + shift) % side) for r in range(window) for c in range(window)]
        for top in starts
        for left in starts
    ]


def apart(a: tuple[int, int], b: tuple[int, int], side: int, window: int, shift: int) -> bool:
    """Whether two tokens of one shifted window come from opposite edges of the map."""

    def wrapped(position: int) -> bool:
        return position < shift  # these were rolled to the far end

    far = side - window + shift  # where the last shifted window begins
    same = all(wrapped(a[axis]) == wrapped(b[axis]) or not (wrapped(a[axis]) or a[axis] >= far) for axis in (0, 1))
    return shift > 0 and not same


@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention_and_the_global_query_equal_loops(shifted: bool) -> None:
    width, heads, window, side = 8, 2, 4, 8
    geometry = WindowGeometry(side, window, shifted)
    own = scrambled(WindowAttention(width, heads, geometry, dropout=0.0))
    asked = scrambled(GlobalQueryAttention(width, heads, geometry, dropout=0.0))
    x = torch.randn(1, side, side, width, dtype=torch.float64)
    global_window = torch.randn(1, window * window, width, dtype=torch.float64)
    expected_own, expected_asked = torch.zeros_like(x), torch.zeros_like(x)
    for places in windows_of(side, window, geometry.shift):
        tokens = torch.stack([x[0, row, column] for row, column in places])
        mask = torch.tensor(
            [[-100.0 if apart(a, b, side, window, geometry.shift) else 0.0 for b in places] for a in places]
        )
        for module, query, key_value, expected in (
            (own, own.qkv(tokens)[:, :width], own.qkv(tokens)[:, width:], expected_own),
            (asked, asked.query(global_window[0]), asked.key_value(tokens), expected_asked),
        ):
            table, joined, depth = module.relative_position_bias_table, [], width // heads
            for head in range(heads):
                columns = slice(head * depth, (head + 1) * depth)
                bias = mask.clone().double()
                for i in range(window * window):
                    for j in range(window * window):
                        down, right = i // window - j // window, i % window - j % window
                        bias[i, j] += table[(down + window - 1) * (2 * window - 1) + right + window - 1, head]
                joined.append(
                    one_head(query[:, columns], key_value[:, columns], key_value[:, width:][:, columns], bias)
                )
            out = module.proj(torch.cat(joined, dim=1))
            for (row, column), token in zip(places, out, strict=True):
                expected[0, row, column] = token
    assert torch.allclose(own(x), expected_own, atol=1e-12)
    assert torch.allclose(asked(x, global_window), expected_asked, atol=1e-12)


@pytest.mark.parametrize(
    ("image_size_px", "steps", "halvings", "sides"),
    [
        (112, [2, 1, 1, 1], [2, 1, 0, 0], [7, 7, 7, 4]),
        (224, [3, 2, 1, 1], [3, 2, 1, 0], [7, 7, 7, 7]),
        (256, [3, 2, 1, 1], [3, 2, 1, 0], [7, 7, 7, 7]),
        (384, [3, 2, 1, 1], [3, 2, 1, 0], [7, 7, 7, 7]),
    ],
)
def test_the_generator_ends_at_the_window_at_every_size(
    image_size_px: int, steps: list[int], halvings: list[int], sides: list[int]
) -> None:
    cfg = ImageEncoderPart(size="custom", width=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    encoder = GswinEncoder(cfg, image_size_px)
    generators = [stage.generator for stage in encoder.layers.values()]
    assert [len(generator.steps) for generator in generators] == steps
    assert [generator.halvings for generator in generators] == halvings
    for stage, (generator, side) in enumerate(zip(generators, sides, strict=True)):
        map_size = -(-encoder.map_size // 2**stage)
        out = generator(torch.randn(2, map_size, map_size, 8 * 2**stage))
        assert out.shape == (2, side * side, 8 * 2**stage)


def test_a_generator_step_and_its_pooling_follow_the_method() -> None:
    generator = scrambled(ConvGenerator(4, map_size=8, window_size=4))
    step = generator.steps[0]
    x = torch.randn(1, 8, 8, 4, dtype=torch.float64)
    z = x[0].permute(2, 0, 1)  # [C, H, W]
    inner = torch.zeros_like(z)
    padded = torch.nn.functional.pad(z, (1, 1, 1, 1))
    for channel in range(4):
        for row in range(8):
            for column in range(8):
                patch = padded[channel, row : row + 3, column : column + 3]
                inner[channel, row, column] = (patch * step.depthwise.weight[channel, 0]).sum() + step.depthwise.bias[
                    channel
                ]
    inner = torch.nn.functional.gelu(inner)
    se = step.squeeze_excite
    gates = torch.sigmoid(
        se.excite.weight @ torch.nn.functional.gelu(se.squeeze.weight @ inner.mean(dim=(1, 2)) + se.squeeze.bias)
        + se.excite.bias
    )
    mixed = torch.einsum("oc,chw->ohw", step.pointwise.weight[:, :, 0, 0], inner * gates[:, None, None])
    z = z + mixed + step.pointwise.bias[:, None, None]
    pooled = torch.stack(
        [
            z[:, max(0, 2 * row - 1) : 2 * row + 2, max(0, 2 * column - 1) : 2 * column + 2].amax(dim=(1, 2))
            for row in range(4)
            for column in range(4)
        ]
    )
    assert torch.allclose(generator(x)[0], generator.norm(pooled), atol=1e-12)


def test_the_average_pool_source_is_the_mean_of_each_cell() -> None:
    generator = AveragePoolGenerator(5, map_size=12, window_size=4).double()
    x = torch.randn(2, 12, 12, 5, dtype=torch.float64)
    cells = x.view(2, 4, 3, 4, 3, 5).mean(dim=(2, 4)).reshape(2, 16, 5)
    assert torch.allclose(generator(x), generator.norm(cells), atol=1e-12)


def test_a_random_global_window_is_the_same_for_every_image_and_is_not_trained() -> None:
    generator = RandomGenerator(5, map_size=12, window_size=4)
    window = generator(torch.randn(2, 12, 12, 5))
    assert window.shape == (2, 16, 5)
    assert torch.equal(window, generator(torch.zeros(2, 12, 12, 5)))
    assert not list(generator.parameters())
    assert list(generator.state_dict()) == ["tokens"]  # a run keeps it


@pytest.mark.parametrize("shifted", [True, False])
def test_without_shifts_nothing_of_another_window_is_seen_in_the_first_stage(shifted: bool) -> None:
    cfg = ImageEncoderPart(
        size="custom", width=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2), window_size=4, global_window=False,
        shifted_windows=shifted, drop_path=0.0,
    )  # fmt: skip
    encoder = GswinEncoder(cfg, 64).eval()
    x = torch.randn(1, 16, 16, 8, requires_grad=True)
    encoder.layers["0"](x)[0, 0, 3].sum().backward()  # at its window's right edge
    seen = x.grad[0].abs().sum(dim=-1) > 0
    assert bool(seen[:4, :4].all())
    assert bool(seen[:, 4:].any()) is shifted
