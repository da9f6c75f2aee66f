"""Fits what balances a finished model's scores to its train split (ours)."""

from __future__ import annotations

import numpy as np
import torch

from cmpagl_core.encoders.encode import encode_captions
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.progress import Silent
from cmpagl_core.training.learner import Learner, Tensors
from cmpagl_core.training.setup import Plan
from cmpagl_core.training.validate import image_features, loaded_model, views_of


def fit_balance(learner: Learner, plan: Plan, cached: bool) -> Tensors:
    """Fit the balance of the learner's model, with evenly spaced train images and all of their captions.

    Returns its tensors by their names in the model; none without `train.balance_images`. cached: whether the
    backbone's maps come from the learner's cache.
    """
    balance, wanted = learner.model.balance, learner.recipe.train.balance_images
    if balance is None:
        return {}
    rows = np.linspace(0, len(plan.train) - 1, min(wanted, len(plan.train))).round().astype(np.int64)
    bank, loaded = plan.train.subset(rows), loaded_model(learner)
    unique, row_of = unique_texts(bank.captions)
    found = (
        image_features(loaded, learner, bank, cached, views_of(learner)),
        encode_captions(loaded, unique, Silent()),
        np.bincount(row_of),
    )
    images, texts, often = (torch.from_numpy(values).to(learner.device) for values in found)
    balance.fit(images, texts, often, learner.model.logit_scale.exp().item())
    return {f"balance.{name}": tensor.detach().cpu() for name, tensor in balance.state_dict().items()}
