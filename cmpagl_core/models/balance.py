"""Scores without hubs: from each is subtracted how near its image and its text are to all training items [ours].

Some captions are near to every image, and some images to every caption; such hubs take the first ranks of queries to
which they do not belong. Re-rankings such as Sinkhorn see that in the gallery. Here the training data show it: the
entropic transport plan between training images and their captions has one potential per item, and its extension to
a new item needs nothing but that item and the training data (Pooladian and Niles-Weed 2021). So scores of pairs stay
independent of what else is in the gallery.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Potentials = NDArray[np.float32]

_SWEEPS = 20  # after which potentials hardly change
_BUFFERS = ("image_bank", "text_bank", "image_offsets", "text_offsets", "scale")


class Balance(nn.Module):
    """Banks of training features and their potentials; empty, and without effect, until `fit`."""

    image_bank: Tensor  # [N, D]
    text_bank: Tensor  # [M, D]
    image_offsets: Tensor  # [N]
    text_offsets: Tensor  # [M]
    scale: Tensor  # [1]

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        for name, shape in zip(_BUFFERS, ((0, embed_dim), (0, embed_dim), (0,), (0,), (1,)), strict=True):
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def fit(self, image_features: Tensor, text_features: Tensor, texts_like: Tensor, scale: float) -> None:
        """Take over a bank and compute its potentials.

        image_features: [N, D]. text_features: [M, D], of distinct captions. texts_like: [M], how often each occurs.
        scale: of the cosines, as the logit scale. Both features are unit length.
        """
        scaled = scale * image_features.float() @ text_features.float().t()  # [N, M]
        often = texts_like.to(scaled).log()
        texts = scaled.new_zeros(len(text_features))
        for _ in range(_SWEEPS):
            images = (scaled - texts + often).logsumexp(dim=1)
            images = images - images.mean()
            texts = (scaled - images[:, None]).logsumexp(dim=0)
        at_images = (scaled - texts + often).logsumexp(dim=1).mean()  # subtracted, so that potentials are small
        at_texts = (texts * texts_like).sum() / texts_like.sum()
        self.image_bank, self.text_bank = image_features.float(), text_features.float()
        self.image_offsets, self.text_offsets = images + at_texts, texts - often + at_images
        self.scale = torch.tensor([scale], device=scaled.device)

    @torch.no_grad()
    def image_potentials(self, features: NDArray[np.float32]) -> Potentials:
        """What to subtract from the scores of images with these features [B, D] of unit length: [B]."""
        return self._potentials(features, self.text_bank, self.text_offsets)

    @torch.no_grad()
    def text_potentials(self, features: NDArray[np.float32]) -> Potentials:
        """The same of texts."""
        return self._potentials(features, self.image_bank, self.image_offsets)

    def _potentials(self, features: NDArray[np.float32], bank: Tensor, offsets: Tensor) -> Potentials:
        scaled = (
            self.scale * torch.tensor(features).to(bank) @ bank.t() - offsets
        )  # [B, bank]; cached ones are read-only
        found: Potentials = (scaled.logsumexp(dim=1) / self.scale).cpu().numpy()
        return found

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in _BUFFERS:  # a bank has as many rows as were fitted
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor) and found.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, getattr(self, name).new_zeros(found.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
