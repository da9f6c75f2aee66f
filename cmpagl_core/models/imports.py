"""Imports pretrained weights into our modules, name by name, and reports what was imported, new and unused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace

import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn

from cmpagl_core.errors import CmpaglError, MismatchError
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.bert import FusionEncoder, MlmHead, TextEncoder
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.weights import ImportReport, Source, Tensors, load_state, parse_source

_BUFFERS = ("relative_position_index", "attn_mask")
_NEW_IN_GSWIN = (".global_branch.", ".generator.", ".merges.", ".scale1", ".scale2")
_OTHER_SIZE = "these weights are of another size"
_OTHER_MODEL = "these weights are of another model"
_BIAS_TABLE = "relative_position_bias_table"


def import_swin(encoder: GswinEncoder, spec: str) -> ImportReport:
    """Import plain Swin weights (timm's or the authors' names) into Gswin; only the global window's are new.

    Raises MismatchError if the tensors are not those of a Swin of this size.
    """
    source = parse_source(spec)
    tensors = _timm_state(source.name) if source.kind == "timm" else load_state(source)
    renamed = _swin_names(tensors)
    state = encoder.state_dict()
    for name, tensor in renamed.items():
        if name.endswith(_BIAS_TABLE) and name in state and tensor.dim() == 2 and tensor.shape != state[name].shape:
            renamed[name] = _resized_table(tensor, state[name])
    _refuse_another_swin(renamed, set(state), source)
    wanted = {name: name for name in state if not any(part in name for part in _NEW_IN_GSWIN)}
    return _copy(encoder, renamed, wanted, source)


def import_backbone(backbone: Backbone, name: str, spec: str) -> ImportReport:
    """Import a timm model's ImageNet weights into the part of it that is the backbone. Raises MismatchError."""
    source = parse_source(spec)
    if source.kind == "timm":
        tensors = _timm_state(source.name)
    elif source.kind == "package":
        tensors = _in_order(name, load_state(source), source)
    else:
        tensors = load_state(source)
    wanted: dict[str, str] = {}
    for ours in backbone.state_dict():
        part, _, rest = ours.partition(".")
        if part == "extra":
            continue  # further extractors have weights of their own
        if part == "head":
            position, _, leaf = rest.partition(".")
            wanted[ours] = f"{('conv_head', 'bn2')[int(position)]}.{leaf}"
        else:
            wanted[ours] = _unflattened(rest, tensors)
    report = _copy(backbone, tensors, wanted, source)
    return replace(report, new=tuple(name for name in report.new if not name.startswith("extra.")))


def import_bert(
    text: TextEncoder, fusion: FusionEncoder | None, mlm_head: MlmHead | None, spec: str
) -> list[tuple[nn.Module, ImportReport]]:
    """Import a BERT's tensors into both halves and, if it has them, into the MLM head. Raises MismatchError."""
    source = parse_source(spec)
    tensors = {_bert_name(name): tensor for name, tensor in load_state(source).items()}
    reports: list[tuple[nn.Module, ImportReport]] = []
    wanted = {name: _bert_source_name(name, 0) for name in text.state_dict()}
    reports.append((text, _copy(text, tensors, wanted, source)))
    if fusion is not None:
        first = text.shape.num_layers - len(fusion.layers)
        own = ("image_projection.", "crossattention.")
        wanted = {
            name: _bert_source_name(name, first)
            for name in fusion.state_dict()
            if not any(part in name for part in own)
        }
        reports.append((fusion, _copy(fusion, tensors, wanted, source)))
    if mlm_head is not None and "cls.predictions.bias" in tensors:
        wanted = {name: f"cls.predictions.{name}" for name in mlm_head.state_dict()}
        reports.append((mlm_head, _copy(mlm_head, tensors, wanted, source)))
    return reports


def _copy(module: nn.Module, tensors: Mapping[str, Tensor], wanted: Mapping[str, str], source: Source) -> ImportReport:
    """Copy tensors[wanted[name]] into each named entry of the module. Raises MismatchError before changing any."""
    state = module.state_dict()
    for name, foreign in wanted.items():
        if foreign not in tensors:
            raise MismatchError(f"{source} has no {foreign}", hint=_OTHER_MODEL)
        if tensors[foreign].shape != state[name].shape:
            found, built = tuple(tensors[foreign].shape), tuple(state[name].shape)
            raise MismatchError(
                f"{foreign} of {source} is {found}, but the recipe needs {built}",
                hint=_OTHER_SIZE,
            )
    with torch.no_grad():
        for name, foreign in wanted.items():
            state[name].copy_(tensors[foreign])
    return ImportReport(
        source=str(source),
        imported=tuple(sorted(wanted)),
        new=tuple(sorted(set(state) - set(wanted))),
        left_over=tuple(sorted(set(tensors) - set(wanted.values()))),
    )


def _refuse_another_swin(tensors: Tensors, known: set[str], source: Source) -> None:
    """Refuse to truncate a deeper Swin, or to take a model with other parts (SwinV2) for a Swin."""
    blocks = {name.partition(".attn.")[0] for name in known if ".attn." in name}
    for name in sorted(tensors):
        if name.startswith("layers.") and name not in known:
            block = re.match(r"layers\.\d+\.blocks\.\d+", name)
            if block is not None and block[0] not in blocks:
                raise MismatchError(f"{source} has {name}, but the recipe's Swin is shallower", hint=_OTHER_SIZE)
            raise MismatchError(f"{source} has {name}, which no Swin has", hint=_OTHER_MODEL)


def _swin_names(tensors: Tensors) -> Tensors:
    """timm's names; the authors' files put each downsampling at the end of the stage before."""
    at_end = "layers.0.downsample.reduction.weight" in tensors
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(_BUFFERS):
            continue
        if at_end:
            name = re.sub(r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
        renamed[name] = tensor
    return renamed


def _resized_table(tensor: Tensor, target: Tensor) -> Tensor:
    """A bias table of another window size, interpolated as in timm; other tensors are unchanged."""
    window = (round(target.shape[0] ** 0.5) + 1) // 2
    side = round(tensor.shape[0] ** 0.5)
    if side * side != tensor.shape[0] or tensor.shape[1] != target.shape[1]:
        return tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns about the memory layout inside timm's function
        resized: Tensor = resize_rel_pos_bias_table(
            tensor, new_window_size=(window, window), new_bias_shape=target.shape
        )
    return resized


def _timm_state(name: str) -> Tensors:
    """A model's published tensors from timm's hub. Raises CmpaglError if they cannot be fetched."""
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:
        raise CmpaglError(
            f"timm:{name} is not available ({type(error).__name__})",
            hint="check the name and the network, or download its file and write file:PATH",
        ) from error


def _in_order(name: str, tensors: Tensors, source: Source) -> Tensors:
    """The package's tensors under timm's names; both list the same layers in the same order."""
    with torch.device("meta"):
        target = timm.create_model(name, pretrained=False).state_dict()
    same = len(target) == len(tensors) and all(
        ours.shape == theirs.shape for ours, theirs in zip(target.values(), tensors.values(), strict=False)
    )
    if not same:
        raise MismatchError(
            f"{source} does not have the weights of {name}", hint="choose the package named after the model"
        )
    return dict(zip(target, tensors.values(), strict=True))


def _unflattened(name: str, tensors: Mapping[str, Tensor]) -> str:
    """timm's feature extractors may spell `stem.0.weight` as `stem_0.weight`."""
    if name in tensors:
        return name
    first, dot, rest = name.partition(".")
    for position in [found.start() for found in re.finditer("_", first)]:
        candidate = first[:position] + "." + first[position + 1 :] + dot + rest
        if candidate in tensors:
            return candidate
    return name


def _bert_name(name: str) -> str:
    """Names without the prefix `bert.`, and with today's names of LayerNorm parameters."""
    name = name.removeprefix("bert.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda f: f"LayerNorm.{'weight' if f[1] == 'gamma' else 'bias'}", name)


def _bert_source_name(name: str, first_layer: int) -> str:
    return re.sub(r"^layers\.(\d+)\.", lambda found: f"encoder.layer.{int(found[1]) + first_layer}.", name)
