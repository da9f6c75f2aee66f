"""Each kernel against its plain layer, against differences and autograd, in values and in gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cmpagl_core
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.bert import BertShape, FusionEncoder, TextEncoder
from cmpagl_core.models.gswin import GlobalBranch, GswinEncoder
from cmpagl_core.models.kernels import global_window, gswin
from cmpagl_core.models.kernels import linear as kernels_linear
from cmpagl_core.models.kernels.attention import attend, attend_packed, attend_shared
from cmpagl_core.models.kernels.bert import WRITTEN_OUT
from cmpagl_core.models.kernels.linear import linear, norm_linear
from cmpagl_core.models.kernels.use import KERNELS, use_kernels
from cmpagl_core.models.windows import WindowGeometry
from cmpagl_core.recipe import FusionEncoderPart, ImageEncoderPart, TextEncoderPart

CPU = torch.device("cpu")
OF_GSWIN = [layer for layer in KERNELS["cpu"] if layer is not Backbone]


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
    geometry = use_kernels(WindowGeometry(8, 4, shifted=True), CPU)
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
        monkeypatch.setattr("cmpagl_core.models.kernels.linear._ROWS_AN_OUTPUT", rows_an_output)
        out = norm_linear(norm, layer, x)
        wanted = [x, *norm.parameters(), *layer.parameters()]
        seen.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    for folded, plain in zip(*seen, strict=True):
        assert torch.allclose(folded, plain, atol=1e-10)
    assert torch.equal(norm_linear(None, layer, x), layer(x))


def encoder(image_size_px: int, **fields: object) -> GswinEncoder:
    """A small encoder, every parameter away from its start, in float64."""
    part = ImageEncoderPart.model_validate(
        {"size": "custom", "width": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "window_size": 4} | fields
    )
    torch.manual_seed(0)
    built = GswinEncoder(part, image_size_px).double()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built


def outcome(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """What comes out, and the gradient of every parameter and floating input."""
    torch.manual_seed(1)
    out = model(*inputs)
    wanted = {f"input {place}": x for place, x in enumerate(inputs) if x.requires_grad} | dict(model.named_parameters())
    found = torch.autograd.grad(out.square().mean(), list(wanted.values()), allow_unused=True)
    return {"out": out} | {name: value for name, value in zip(wanted, found, strict=True) if value is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-8, atol=1e-10), name


def test_folded_attention_in_bf16_is_that_of_fp32_to_rounding() -> None:
    cfg = ImageEncoderPart(size="custom", width=32, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2))
    branch = use_kernels(GlobalBranch(cfg, 32, 2, WindowGeometry(14, 7, shifted=False)), CPU)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, whole = torch.randn(2, 14, 14, 32).requires_grad_(), torch.randn(2, 49, 32)
    exact = branch(x, whole)
    with torch.autocast("cpu", torch.bfloat16):
        found = branch(x, whole)
    assert found.dtype == torch.bfloat16
    gradients = (torch.autograd.grad(out.float().square().sum(), x)[0] for out in (found, exact))
    assert F.cosine_similarity(found.float().flatten(), exact.flatten(), dim=0) > 0.9999
    assert F.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0) > 0.999


@pytest.mark.parametrize("image_size_px", [64, 72])  # maps of whole windows, and padded ones
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"global_query": "global"},
        {"branches": "parallel", "global_window_source": "avgpool"},
        {"shifted_windows": False, "global_window_source": "random"},
        {"global_window": False, "layer_scale_init": 0.1},
        {"layer_scale_init": 0.1, "drop_path": 0.5},
    ],
    ids=["as it is", "global query", "parallel", "random, no shifts", "no global window", "layer scale"],
)
@pytest.mark.parametrize("folds", [True, False])
def test_an_encoder_with_kernels_is_the_plain_one(
    image_size_px: int, fields: dict[str, object], folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_linear, "_ROWS_AN_OUTPUT", 0 if folds else 10**9)
    monkeypatch.setattr(global_window, "_TOKENS_A_CHANNEL", 0 if folds else 10**9)
    pixel_values = torch.randn(3, 3, image_size_px, image_size_px, dtype=torch.float64)
    model = encoder(image_size_px, **fields)
    expected = outcome(model, pixel_values)
    assert_same(outcome(use_kernels(model, CPU), pixel_values), expected)


def test_images_in_groups_are_the_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gswin, "_VALUES_AT_ONCE", 16 * 16 * 8 * 2)  # two images of the first map
    pixel_values = torch.randn(5, 3, 64, 64, dtype=torch.float64)
    model = encoder(64, drop_path=0.0)
    expected = outcome(model, pixel_values)
    assert_same(outcome(use_kernels(model, CPU), pixel_values), expected)


def test_an_extractors_maps_of_many_images_are_those_of_each() -> None:
    cfg = ImageEncoderPart(
        size="custom",
        width=8,
        depths=(0, 0, 0, 1),
        num_heads=(1, 1, 1, 1),
        backbone="resnet10t",
        backbone_strides=(32,),
    )
    backbone, pixel_values = Backbone(cfg).double(), torch.randn(19, 3, 32, 32, dtype=torch.float64)
    (expected,) = backbone.parts(pixel_values)
    (found,) = use_kernels(backbone, CPU).parts(pixel_values)
    assert type(backbone) is KERNELS["cpu"][Backbone]
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("layer", OF_GSWIN, ids=lambda layer: layer.__name__)
def test_each_kernel_alone_is_its_plain_layer(layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, so that no error of one hides another's."""
    monkeypatch.setitem(KERNELS, "cpu", {layer: KERNELS["cpu"][layer]})  # type: ignore[arg-type]
    model, pixel_values = encoder(72, layer_scale_init=0.1), torch.randn(2, 3, 72, 72, dtype=torch.float64)
    expected = outcome(model, pixel_values)
    use_kernels(model, CPU)
    assert sum(type(module) in KERNELS["cpu"].values() for module in model.modules()) > 1
    assert_same(outcome(model, pixel_values), expected)


def test_bert_with_kernels_is_the_plain_one() -> None:
    shape = BertShape(vocab_size=50, hidden_size=24, num_layers=4, num_heads=3, intermediate_size=48, max_positions=40)
    text = TextEncoder(TextEncoderPart(dropout=0.0), shape, 2).double()
    fusion = FusionEncoder(FusionEncoderPart(dropout=0.0), shape, 2, image_width=10).double()
    ids, mask = torch.randint(1, 50, (3, 7)), torch.arange(7) < torch.tensor([[7], [4], [1]])
    image = torch.randn(3, 5, 10, dtype=torch.float64)

    def passed() -> list[Tensor]:
        tokens = text(ids, mask)
        cache = fusion.cross_attention_cache(image)
        fused = fusion(tokens, mask, image)[mask]
        first = fusion.first_token(tokens, mask, cache)
        parameters = [*text.parameters(), *fusion.parameters()]
        return [fused, first, *torch.autograd.grad(fused.square().sum() + first.square().sum(), parameters)]

    expected = passed()
    for module in (text, fusion):
        use_kernels(module, CPU)
    assert text.layers[0].attention.self.config._attn_implementation == WRITTEN_OUT
    for found, value in zip(passed(), expected, strict=True):
        assert torch.allclose(found, value, rtol=1e-8, atol=1e-10)


def test_kernels_change_no_name_of_a_weight_and_leave_where_they_do_not_pay() -> None:
    model = encoder(64)
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    use_kernels(use_kernels(model, CPU), CPU)
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] != classes
    use_kernels(model, torch.device("meta"))
    assert [type(module) for module in model.modules()] == classes


def test_every_function_with_a_backward_pass_of_its_own_is_a_kernel() -> None:
    core = Path(cmpagl_core.__file__).parent
    own = {path.parent.name for path in core.rglob("*.py") if "autograd.Function" in path.read_text(encoding="utf-8")}
    assert own == {"kernels"}
