"""Features without hubs: two more coordinates subtract how near an item is to all training items [ours].

Some captions are near to every image, and some images to every caption; such hubs take the first ranks of queries to
which they do not belong. Re-rankings such as Sinkhorn see that in the gallery. Here the training data show it: the
entropic transport plan between training images and their captions has one potential per item, and its extension to
a new item needs nothing but that item and the training data (Pooladian and Niles-Weed 2021). So scores of pairs stay
independent of what else is in the gallery.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    @property
    def is_fitted(self) -> bool:
        """Whether it has a bank."""
        return len(self.image_bank) > 0

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
        at_images = (scaled - texts + often).logsumexp(dim=1).mean()  # subtracted, so that the coordinates are small
        at_texts = (texts * texts_like).sum() / texts_like.sum()
        self.image_bank, self.text_bank = image_features.float(), text_features.float()
        self.image_offsets, self.text_offsets = images + at_texts, texts - often + at_images
        self.scale = torch.tensor([scale], device=scaled.device)

    def images(self, features: Tensor) -> Tensor:
        """image_features [B, D] of unit length. Returns [B, D + 2], of unit length too."""
        return _widened(features, self.text_bank, self.text_offsets, self.scale, is_image=True)

    def texts(self, features: Tensor) -> Tensor:
        """text_features [B, D] of unit length. Returns [B, D + 2], of unit length too."""
        return _widened(features, self.image_bank, self.image_offsets, self.scale, is_image=False)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in _BUFFERS:  # a bank has as many rows as were fitted
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor) and found.shape[1:] == getattr(self, name).shape[1:]:
                setattr(self, name, getattr(self, name).new_zeros(found.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _widened(features: Tensor, bank: Tensor, offsets: Tensor, scale: Tensor, is_image: bool) -> Tensor:
    """cos(images, texts) of the results is about half of: the cosine, less both potentials over the scale."""
    with torch.autocast(features.device.type, enabled=False):
        found = features.float()
        potential = (scale * found @ bank.t() - offsets).logsumexp(dim=1, keepdim=True) / scale  # [B, 1]
        one = torch.ones_like(potential)
        added = (one, -potential) if is_image else (-potential, one)
        return F.normalize(torch.cat([found, *added], dim=1), dim=1)
