"""The model on a CUDA device against the CPU: features, match logits and gradients; skipped without such a device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from cmpagl_core.models.cmpagl import CmpaglModel, build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.recipe import Recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")

RECIPE = {
    "data": {"dataset": "ucm", "image_size_px": 64},
    "image_encoder": {
        "size": "custom", "width": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4,
    },
    "text_encoder": {"size": "tiny"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """No rounding to TF32, in matrix products or convolutions."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def scores(model: CmpaglModel, device: str) -> list[Tensor]:
    """image_features, text_features and ITM logits of two images and captions, one of them padded."""
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(2, 3, 64, 64, generator=generator).to(device)
    input_ids = torch.randint(5, 100, (2, 9), generator=generator).to(device)
    attention_mask = torch.arange(9).lt(torch.tensor([[9], [5]])).to(device)
    images, texts = model.encode_images(pixel_values), model.encode_texts(input_ids, attention_mask)
    return [images.features, texts.features, model.itm_logits(model.fuse(texts, images.tokens))]


def with_open_gates() -> CmpaglModel:
    model = build_model(Recipe.model_validate(RECIPE), 100).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            nn.init.normal_(parameter)
    return model


def test_a_cuda_device_gives_the_cpus_features_and_gradients() -> None:
    model = with_open_gates()
    found: dict[str, list[Tensor]] = {}
    for device in ("cpu", "cuda"):
        use_kernels(model, torch.device(device)).zero_grad(set_to_none=True)
        outputs = scores(model, device)
        torch.cat([output.square().flatten() for output in outputs]).mean().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found[device] = [tensor.detach().cpu().clone() for tensor in (*outputs, *gradients)]
    for expected, out in zip(found["cpu"], found["cuda"], strict=True):
        assert torch.allclose(out, expected, rtol=1e-3, atol=1e-5)
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # it re-plans for every sequence length


def test_half_precision_on_a_cuda_device_is_fp32_to_rounding() -> None:
    model = with_open_gates()
    with torch.inference_mode():
        exact = scores(model, "cpu")
        with torch.autocast("cuda", torch.bfloat16):
            rounded = scores(use_kernels(model, torch.device("cuda")), "cuda")
    for expected, out in zip(exact[:2], rounded[:2], strict=True):
        assert nn.functional.cosine_similarity(out.float().cpu(), expected).min() > 0.999
