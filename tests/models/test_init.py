"""How random weights of Gswin begin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.recipe import ImageEncoderPart


@pytest.mark.parametrize("init", ["swin", "fan_in"])
def test_linear_layers_begin_with_the_deviation_that_the_recipe_names(init: str) -> None:
    torch.manual_seed(0)
    cfg = ImageEncoderPart.model_validate(
        {
            "size": "custom",
            "width": 32,
            "depths": [2, 2, 2, 2],
            "num_heads": [1, 2, 4, 8],
            "window_size": 2,
            "init": init,
        }
    )
    for module in GswinEncoder(cfg, 64).modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 4000:
            wanted = 0.02 if init == "swin" else module.in_features**-0.5
            assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=0.1)
