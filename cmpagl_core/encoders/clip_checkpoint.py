"""A checkpoint file of a CLIP model: read without its code, recognised by its shapes, refused in one sentence."""

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
    """Fill a model from a file of tensors, also where a trainer wrapped or prefixed them.

    Raises MismatchError when the file is of another architecture or is a TorchScript archive, DataError when it
    cannot be read.
    """
    if is_torchscript(path):
        raise MismatchError(
            f"{path} is a TorchScript archive, which holds code beside the weights",
            hint="save its state_dict() to a file of its own, or name a tag of open_clip's in its place",
        )
    state = unprefixed(read_foreign(path))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = architecture_of(state)
        inside = f"it holds {found}" if found else " ".join(str(error).split())[:200]
        raise MismatchError(
            f"{path} does not hold the weights of open_clip's {architecture} ({inside})",
            hint="name its own architecture, as in open_clip:ViT-L-14:FILE",
        ) from error


def unprefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what a trainer puts before all of them."""
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
    """What a table of tensors looks like, in words; empty when it looks like no CLIP model."""
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
