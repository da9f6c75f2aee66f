"""Checkpoint files of CLIP models: read without running code, recognised by their shapes, refused in one sentence."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from cmpagl_core.errors import MismatchError
from cmpagl_core.models.weights import read_foreign

_PREFIXES = ("module.", "model.")


def load_checkpoint(model: nn.Module, path: Path, architecture: str) -> None:
    """Load a file of tensors into a model, even if a trainer wrapped or prefixed them.

    Raises MismatchError if the file is of another architecture or a TorchScript archive, DataError if it is unreadable.
    """
    if is_torchscript(path):
        raise MismatchError(
            f"{path} is a TorchScript archive, which contains code besides the weights",
            hint="save its state_dict() to a file, or use a pretrained tag of open_clip instead",
        )
    state = unprefixed(read_foreign(path))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = architecture_of(state)
        inside = f"it contains {found}" if found else " ".join(str(error).split())[:200]
        raise MismatchError(
            f"{path} does not contain the weights of open_clip's {architecture} ({inside})",
            hint="name its own architecture, as in open_clip:ViT-L-14:FILE",
        ) from error


def unprefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without a prefix that a trainer put before all of them."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with a folder of code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.fullmatch(r"[^/]*/(code/.*\.py|constants\.pkl)", name) for name in archive.namelist())


def architecture_of(state: Mapping[str, Tensor]) -> str:
    """A description of the model in a table of tensors; empty if it does not look like a CLIP model."""
    patches, width = state.get("visual.conv1.weight"), state.get("visual.class_embedding")
    if patches is not None and width is not None and patches.dim() == 4:
        layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
        return f"a ViT of width {len(width)}, patch {patches.shape[-1]} and {layers} layers"
    if any(name.startswith("visual.layer4.") for name in state):
        blocks = _count(state, r"visual\.layer3\.(\d+)\.")
        return f"a ResNet with {blocks} blocks in its third layer"
    if any(name.startswith("visual.trunk.") for name in state):
        blocks = _count(state, r"visual\.trunk\.blocks\.(\d+)\.")
        return f"a timm image encoder of {blocks} blocks, as SigLIP has it"
    if any(name.startswith("vision_model.") for name in state):
        return "a model in the layout of transformers"
    return ""


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})
