"""Checkpoint files of CLIP models: read without running code, recognised by their shapes, refused in one sentence."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cmpagl_core.errors import MismatchError
from cmpagl_core.models.weights import read_foreign

_PREFIXES = ("module.", "model.")
_VISION, _TEXT = r"^vision_model\.encoder\.layers\.(\d+)\.", r"^text_model\.encoder\.layers\.(\d+)\."
_BLOCK, _RESBLOCK = r"visual.trunk.blocks.\1.", r"text.transformer.resblocks.\1."
_SIGLIP_NAMES = (
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.trunk.patch_embed.proj."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.trunk.pos_embed"),
    (_VISION + r"layer_norm1\.", _BLOCK + "norm1."),
    (_VISION + r"layer_norm2\.", _BLOCK + "norm2."),
    (_VISION + r"self_attn\.in_proj\.", _BLOCK + "attn.qkv."),
    (_VISION + r"self_attn\.out_proj\.", _BLOCK + "attn.proj."),
    (_VISION + r"mlp\.", _BLOCK + "mlp."),
    (r"^vision_model\.post_layernorm\.", "visual.trunk.norm."),
    (r"^vision_model\.head\.probe$", "visual.trunk.attn_pool.latent"),
    (r"^vision_model\.head\.attention\.out_proj\.", "visual.trunk.attn_pool.proj."),
    (r"^vision_model\.head\.layernorm\.", "visual.trunk.attn_pool.norm."),
    (r"^vision_model\.head\.mlp\.", "visual.trunk.attn_pool.mlp."),
    (r"^text_model\.embeddings\.token_embedding\.", "text.token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "text.positional_embedding"),
    (_TEXT + r"layer_norm1\.", _RESBLOCK + "ln_1."),
    (_TEXT + r"layer_norm2\.", _RESBLOCK + "ln_2."),
    (_TEXT + r"self_attn\.in_proj\.", _RESBLOCK + "attn.in_proj_"),
    (_TEXT + r"self_attn\.out_proj\.", _RESBLOCK + "attn.out_proj."),
    (_TEXT + r"mlp\.fc1\.", _RESBLOCK + "mlp.c_fc."),
    (_TEXT + r"mlp\.fc2\.", _RESBLOCK + "mlp.c_proj."),
    (r"^text_model\.final_layer_norm\.", "text.ln_final."),
    (r"^text_model\.head\.", "text.text_projection."),
)


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
    if "vision_model.head.probe" in state and "visual.trunk.pos_embed" in model.state_dict():
        state = siglip_state(state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = architecture_of(state)
        inside = f"it contains {found}" if found else " ".join(str(error).split())[:200]
        raise MismatchError(
            f"{path} does not contain the weights of open_clip's {architecture} ({inside})",
            hint="name its own architecture, as in open_clip:ViT-L-14:FILE",
        ) from error


def siglip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A SigLIP in the layout of transformers, as open_clip has it: timm's ViT, and open_clip's own text half.

    Entries of another layout are left out, so that loading names what is missing.
    """
    joined = dict(state)
    for name in [name for name in state if ".self_attn.q_proj." in name]:
        parts = [joined.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        joined[name.replace("q_proj", "in_proj")] = torch.cat(parts)
    found: dict[str, Tensor] = {}
    for name, value in joined.items():
        for pattern, ours in _SIGLIP_NAMES:
            renamed, count = re.subn(pattern, ours, name)
            if count:
                found[renamed] = value
                break
    probe = "vision_model.head.attention.in_proj_"
    for kind in ("weight", "bias"):
        query, keys = joined[f"{probe}{kind}"].tensor_split((len(joined[f"{probe}{kind}"]) // 3,))
        found[f"visual.trunk.attn_pool.q.{kind}"], found[f"visual.trunk.attn_pool.kv.{kind}"] = query, keys
    positions = "visual.trunk.pos_embed"
    found[positions] = found[positions][None]
    for scale in ("logit_scale", "logit_bias"):
        if scale in state:
            found[scale] = state[scale].reshape(())
    return found


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
