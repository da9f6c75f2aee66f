"""A training batch's captions through the text half: each different one once, with others of its length (ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cmpagl_core.models.cmpagl import CmpaglModel, TextEncoding

_LENGTH_GROUPS = 3  # with single captions, these take 38 % of the tokens out of a batch of 128 of UCM's


def encode_batch_texts(model: CmpaglModel, input_ids: Tensor, attention_mask: Tensor) -> TextEncoding:
    """What `model.encode_texts` gives, for less: [B, L] ids and mask, padded on the right.

    Equal captions share one pass, so in training they also share its dropout.
    """
    width = input_ids.shape[1]
    unique, row_of = torch.unique(input_ids.masked_fill(~attention_mask, -1), dim=0, return_inverse=True)
    lengths = (unique >= 0).sum(dim=1)
    order = lengths.argsort(stable=True)
    tokens, features = [], []
    for rows in order.chunk(_LENGTH_GROUPS):
        ids = unique[rows, : int(lengths[rows[-1]])]
        encoding = model.encode_texts(ids.clamp(min=0), ids >= 0)
        tokens.append(F.pad(encoding.tokens, (0, 0, 0, width - ids.shape[1])))
        features.append(encoding.features)
    place = order.argsort()[row_of]  # [B], row among the encoded
    return TextEncoding(torch.cat(tokens)[place], torch.cat(features)[place], attention_mask)
