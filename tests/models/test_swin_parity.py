"""Gswin without its global window is timm's Swin, to the last digits of fp32."""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.swin_transformer import shifted_window_attention

from cmpagl_core.errors import MismatchError
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.imports import import_swin
from cmpagl_core.models.windows import WindowAttention, WindowGeometry, window_bias
from cmpagl_core.recipe import ImageEncoderPart

SLOW = pytest.mark.slow
NARROW = {"embed_dim": 24, "num_heads": (1, 2, 4, 8)}  # of timm's Swin-T: "narrow"


def encoder_part(size: str, **options: Any) -> ImageEncoderPart:
    """The encoder of timm's Swin of that size."""
    if size == "narrow":
        return ImageEncoderPart(size="custom", width=24, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), **options)
    return ImageEncoderPart(size=size, **options)


@cache
def scrambled_swin(size: str, image_size_px: int, window: int = 7) -> nn.Module:
    """timm's Swin with every parameter away from its start, so that a swapped or missed one shows.

    Made once for all tests, which leave it as it is.
    """
    torch.manual_seed(0)
    name, narrow = ("tiny", NARROW) if size == "narrow" else (size, {})
    options = {"img_size": image_size_px, "window_size": window, **narrow}
    model = timm.create_model(f"swin_{name}_patch4_window7_224", pretrained=False, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def saved(state: dict[str, Tensor], path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return f"file:{path}"


def test_every_shift_mask_is_timms() -> None:
    theirs = scrambled_swin("narrow", 224)
    ours = GswinEncoder(encoder_part("narrow", global_window=False), 224)
    seen = []
    for stage, layer in zip(ours.layers.values(), theirs.layers, strict=True):
        for branch, block in zip(stage.blocks, layer.blocks, strict=True):
            mask = branch.attn.geometry.mask
            assert (mask is None) == (block.attn_mask is None)
            if mask is not None:
                assert torch.equal(mask, block.attn_mask)
                seen.append(branch.attn.geometry.map_size)
    assert list(dict.fromkeys(seen)) == [56, 28, 14]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("map_size", [14, 16, 18, 9])  # 14 is two windows; the others are maps of 256 and 288 px
def test_windows_of_a_padded_map_are_torchvisions(map_size: int, shifted: bool) -> None:
    torch.manual_seed(0)
    own = WindowAttention(8, 2, WindowGeometry(map_size, 7, shifted), dropout=0.0)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(2, map_size, map_size, 8)
    bias = window_bias(own.relative_position_bias_table, own.relative_position_index, None)
    layers = (own.qkv.weight, own.proj.weight, bias, [7, 7], 2, [3 * shifted, 3 * shifted])
    theirs = shifted_window_attention(x, *layers, qkv_bias=own.qkv.bias, proj_bias=own.proj.bias)
    assert torch.allclose(own(x), theirs, atol=1e-5)


def difference(ours: GswinEncoder, theirs: nn.Module) -> float:
    pixels = torch.randn(2, 3, ours.image_size_px, ours.image_size_px, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.forward_features(pixels).flatten(1, 2)
        tokens = ours.eval()(pixels)
    assert torch.allclose(tokens[:, 0], expected.mean(dim=1), atol=1e-5)
    return float((tokens[:, 1:] - expected).abs().max())


# Sizes where each map is whole windows or smaller than one: elsewhere timm's windows join opposite edges of the map.
@pytest.mark.parametrize(
    ("size", "image_size_px"),
    [
        ("tiny", 224),
        pytest.param("tiny", 112, marks=SLOW),
        *(pytest.param(size, px, marks=SLOW) for size in ("tiny", "small", "base") for px in (224, 448)),
    ],
)
def test_without_the_global_window_the_encoder_is_timms_swin(size: str, image_size_px: int, tmp_path: Path) -> None:
    theirs = scrambled_swin(size, image_size_px)
    ours = GswinEncoder(ImageEncoderPart(size=size, global_window=False), image_size_px)
    import_swin(ours, saved(theirs.state_dict(), tmp_path / "swin.safetensors"))
    assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("size", "image_size_px", "global_query"),
    [
        ("narrow", 224, "local"),
        ("narrow", 224, "global"),
        *(pytest.param(size, px, "local", marks=SLOW) for size in ("tiny", "small", "base") for px in (224, 448)),
    ],
)
def test_with_the_gate_at_zero_gswin_is_the_imported_swin(
    size: str, image_size_px: int, global_query: str, tmp_path: Path
) -> None:
    theirs = scrambled_swin(size, image_size_px)
    ours = GswinEncoder(encoder_part(size, global_query=global_query), image_size_px)
    report = import_swin(ours, saved(theirs.state_dict(), tmp_path / "swin.safetensors"))
    assert difference(ours, theirs) < 1e-5
    assert all("global_branch" in name or "generator" in name for name in report.new)
    assert set(report.left_over) == {"head.fc.weight", "head.fc.bias"}
    assert set(report.imported) | set(report.new) == set(ours.state_dict())


def test_the_authors_file_layout_is_imported_too(tmp_path: Path) -> None:
    theirs = scrambled_swin("narrow", 224)
    published: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        stage, dot, rest = name.removeprefix("layers.").partition(".")
        if rest.startswith("downsample"):
            name = f"layers.{int(stage) - 1}{dot}{rest}"
        published[name.replace("head.fc", "head")] = tensor
    published["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    published["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    torch.save({"model": published}, tmp_path / "swin.pth")
    ours = GswinEncoder(encoder_part("narrow", global_window=False), 224)
    report = import_swin(ours, f"file:{tmp_path / 'swin.pth'}")
    assert difference(ours, theirs) < 1e-5
    assert set(report.left_over) == {"head.weight", "head.bias"}


def test_weights_of_another_window_size_are_resized_as_timm_does(tmp_path: Path) -> None:
    theirs = deepcopy(scrambled_swin("narrow", 224, window=14))
    spec = saved(theirs.state_dict(), tmp_path / "swin.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, about memory layout inside timm
        theirs.set_input_size(img_size=(224, 224), window_size=(7, 7))
    ours = GswinEncoder(encoder_part("narrow", global_window=False), 224)
    import_swin(ours, spec)
    assert difference(ours, theirs) < 1e-5


def test_weights_of_another_size_are_refused_and_change_nothing(tmp_path: Path) -> None:
    spec = saved(scrambled_swin("tiny", 224).state_dict(), tmp_path / "swin.safetensors")
    narrower = ImageEncoderPart(size="custom", width=48, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
    ours = GswinEncoder(narrower, 224)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(
        MismatchError, match=r"patch_embed.proj.weight .* is \(96, 3, 4, 4\), but the recipe needs \(48, 3, 4, 4\)"
    ):
        import_swin(ours, spec)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_a_deeper_swin_is_refused_rather_than_cut(tmp_path: Path) -> None:
    spec = saved(scrambled_swin("tiny", 224).state_dict(), tmp_path / "swin.safetensors")
    shallower = ImageEncoderPart(size="custom", width=96, depths=(2, 2, 4, 2), num_heads=(3, 6, 12, 24))
    with pytest.raises(MismatchError, match=r"layers\.2\.blocks\.4"):
        import_swin(GswinEncoder(shallower, 224), spec)


def test_the_weights_of_no_swin_are_refused(tmp_path: Path) -> None:
    spec = saved({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(MismatchError, match="another model"):
        import_swin(GswinEncoder(ImageEncoderPart(), 224), spec)
