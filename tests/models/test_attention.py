"""Attention on the CPU: its own backward pass against differences and autograd, and bf16's linear layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpagl_core.models.attention import attend, attend_packed, attend_shared
from cmpagl_core.models.linear import linear, norm_linear
from cmpagl_core.models.windows import WindowGeometry


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """The formula, which autograd differentiates."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ value


def random_parts(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("bias_shape", [None, (1, 2, 3, 4), (2, 1, 1, 4), (2, 2, 3, 4)])
@pytest.mark.parametrize("keys_of", [2, 1])
def test_gradients_of_attention_are_those_of_differences(bias_shape: tuple[int, ...] | None, keys_of: int) -> None:
    parts = random_parts((2, 2, 3, 5), (keys_of, 2, 4, 5), (keys_of, 2, 4, 5))
    biases = [] if bias_shape is None else random_parts(bias_shape)
    assert torch.autograd.gradcheck(attend, (*parts, *biases))
    expected = plain(*parts, biases[0] if biases else None)
    before = [part.detach().clone() for part in (*parts, *biases)]
    assert torch.allclose(attend(*parts, *biases), expected, atol=1e-12)
    assert all(torch.equal(part, copy) for part, copy in zip((*parts, *biases), before, strict=True))


@pytest.mark.parametrize("turns", [1, 2])
def test_packed_attention_is_the_formula_head_by_head(turns: int) -> None:
    packed, bias = random_parts((4, 3, 3 * 2 * 5), (turns, 2, 3, 3))
    assert torch.autograd.gradcheck(lambda *parts: attend_packed(*parts, 2), (packed, bias))
    out = attend_packed(packed, bias, 2)
    for row in range(4):
        for head in range(2):
            query, key, value = (packed[row, :, start + head * 5 : start + head * 5 + 5] for start in (0, 10, 20))
            expected = plain(query, key, value, bias[row % turns, head])
            assert torch.allclose(out[row, :, head * 5 : head * 5 + 5], expected, atol=1e-12)


def test_attention_over_shared_keys_is_the_formula_head_by_head() -> None:
    x, keys, bias, values = random_parts((2, 6, 5), (2, 2 * 4, 5), (2, 2 * 4, 1), (2, 2 * 4, 5))
    assert torch.autograd.gradcheck(lambda *parts: attend_shared(*parts, 2), (x, keys, bias, values))
    expected = torch.zeros_like(x)
    for head in (slice(0, 4), slice(4, 8)):
        scores = x @ keys[:, head].transpose(1, 2) + bias[:, head].transpose(1, 2)
        expected = expected + scores.softmax(dim=-1) @ values[:, head]
    assert torch.allclose(attend_shared(x, keys, bias, values, 2), expected, atol=1e-12)


def test_attention_in_bf16_is_that_of_fp32_to_rounding() -> None:
    parts = [part.detach().float() for part in random_parts((2, 3, 49, 32), (2, 3, 49, 32), (2, 3, 49, 32))]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*parts)
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float().flatten(), plain(*parts, None).flatten(), dim=0) > 0.9999


def test_packed_attention_in_bf16_is_that_of_fp32_to_rounding() -> None:
    packed, bias = (part.detach().float() for part in random_parts((8, 49, 3 * 2 * 32), (4, 2, 49, 49)))
    out = attend_packed(packed.bfloat16(), bias, 2)
    assert out.dtype == torch.bfloat16
    exact = attend_packed(packed, bias, 2)
    assert F.cosine_similarity(out.float().flatten(), exact.flatten(), dim=0) > 0.9999


def test_a_shifted_map_is_cut_in_one_copy_as_rolling_and_cutting_does() -> None:
    geometry = WindowGeometry(8, 4, shifted=True)
    (x,) = random_parts((2, 8, 8, 3))
    windows = geometry.cut(x)
    rolled = torch.roll(x, shifts=(-2, -2), dims=(1, 2))
    for number, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        assert torch.equal(windows[number], rolled[0, top : top + 4, left : left + 4].reshape(16, 3))
    assert torch.equal(geometry.uncut(windows), x)
    assert torch.autograd.gradcheck(geometry.cut, (x[:, :, :, :1].detach().requires_grad_(),))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("width", "bias"), [(8, True), (8, False), (256, True)])
def test_linear_layers_in_bf16_are_torchs_own(width: int, bias: bool, scaled: bool, training: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(width, 24, bias=bias), torch.randn(2, 4 * width, width, requires_grad=training)
    scale = torch.randn(24) if scaled else None
    seen = []
    for run in (lambda: linear(layer, x, scale), lambda: layer(x) * (1.0 if scale is None else scale.bfloat16())):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
            out = run()
        gradients = torch.autograd.grad(out.float().square().sum(), [layer.weight, x]) if training else ()
        seen.append([out, *gradients])
    assert seen[0][0].dtype == torch.bfloat16
    for found, expected in zip(*seen, strict=True):
        assert torch.allclose(found, expected, rtol=2e-2, atol=2e-2 * float(expected.detach().abs().max()))
    in_fp32 = layer(x) if scale is None else layer(x) * scale
    assert torch.allclose(linear(layer, x, scale), in_fp32, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_folded_into_the_layer_behind_it_changes_no_gradient(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    norm, layer, x = nn.LayerNorm(6).double(), nn.Linear(6, 4, bias=bias).double(), random_parts((3, 5, 6))[0]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    seen = []
    for rows_an_output in (1, 100):
        monkeypatch.setattr("cmpagl_core.models.linear._ROWS_AN_OUTPUT", rows_an_output)
        out = norm_linear(norm, layer, x)
        wanted = [x, *norm.parameters(), *layer.parameters()]
        seen.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    for folded, plain in zip(*seen, strict=True):
        assert torch.allclose(folded, plain, atol=1e-10)
    assert torch.equal(norm_linear(None, layer, x), layer(x))
