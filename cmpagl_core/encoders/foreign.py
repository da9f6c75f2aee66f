"""Features of models that are not ours: any that open_clip builds, with a local checkpoint or one it can fetch.

RemoteCLIP, GeoRSCLIP and SkyCLIP are checkpoints of open_clip models, so that they can be scored under our protocol.
Needs the extra `clip`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.decode import file_decoder
from cmpagl_core.encoders.encode import Features, collect, encode_with, unit_rows
from cmpagl_core.encoders.export import absolute_paths
from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, unique_texts
from cmpagl_core.errors import CmpaglError, DataError, MismatchError, UsageError
from cmpagl_core.files import canonical_json
from cmpagl_core.progress import Progress

_PICTURES_AT_ONCE = 32
_TEXTS_AT_ONCE = 256
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class ForeignModel:
    """An open_clip model, ready to encode. name: as the user wrote it."""

    name: str
    short_name: str
    model: nn.Module
    transform: Callable[[Any], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    preprocessing: str
    device: torch.device
    sha256: str


def load_foreign(spec: str, device: torch.device, progress: Progress) -> ForeignModel:
    """Build `open_clip:NAME[:CHECKPOINT]`.

    NAME: an open_clip architecture, or a JSON file that describes one. CHECKPOINT: a local file, or a tag of
    open_clip's; left out, the first tag that open_clip lists for it. Raises UsageError for a name that is not known
    or when open_clip is not installed, MismatchError when the checkpoint is not of that architecture.
    """
    kind, _, rest = spec.partition(":")
    name, _, checkpoint = rest.partition(":")
    if kind != "open_clip" or not name:
        raise UsageError(f"model {spec!r} is not open_clip:NAME[:CHECKPOINT]", hint="for instance open_clip:ViT-B-32")
    try:
        import open_clip
    except ImportError as error:
        raise UsageError("open_clip is not installed", hint="pip install 'cmpagl[clip]'") from error
    known = _known_name(open_clip, name)
    tag = checkpoint or _first_tag(open_clip, known, progress)
    model, transform, tokenize = _build(open_clip, known, tag)
    if Path(tag).is_file():
        _load_checkpoint(model, Path(tag), known)
    model = model.to(device).eval()
    return ForeignModel(
        name=f"open_clip:{known}:{Path(tag).name}",
        short_name=f"open_clip-{known}",
        model=model,
        transform=transform,
        tokenize=tokenize,
        preprocessing=f"open_clip: {canonical_json(open_clip.get_model_preprocess_cfg(model))}",
        device=device,
        sha256=_sha256(model.state_dict()),
    )


def foreign_features(
    loaded: ForeignModel, split: DataSplit, progress: Progress, manifest_sha256: str = ""
) -> FeatureSet:
    """Encode a split with a foreign model in float32. Raises DataError for a picture that cannot be read."""

    def encode(pixel_values: Tensor) -> Tensor:
        with torch.inference_mode():
            features: Tensor = loaded.model.encode_image(pixel_values.to(loaded.device))  # type: ignore[operator]
        return features

    batches = encode_with(encode, file_decoder(loaded.transform), split.paths, _PICTURES_AT_ONCE)
    return FeatureSet(
        image_features=collect(batches, len(split.paths), progress),
        text_features=_text_features(loaded, split.captions, progress),
        text_image=split.caption_image,
        image_ids=split.image_ids,
        paths=absolute_paths(split.paths),
        captions=split.captions,
        info=FeatureInfo(
            model=loaded.name,
            model_sha256=loaded.sha256,
            dataset=split.dataset,
            manifest_sha256=manifest_sha256,
            split=split.name,
            split_sha256=split.sha256,
            preprocessing=loaded.preprocessing,
            precision="fp32",
        ),
    )


def _text_features(loaded: ForeignModel, captions: tuple[str, ...], progress: Progress) -> Features:
    unique, row_of = unique_texts(captions)
    blocks: list[Features] = []
    with progress.task("encode captions", len(unique), "captions") as advance:
        for start in range(0, len(unique), _TEXTS_AT_ONCE):
            part = unique[start : start + _TEXTS_AT_ONCE]
            with torch.inference_mode():
                tokens = loaded.tokenize(part).to(loaded.device)
                blocks.append(unit_rows(loaded.model.encode_text(tokens)))  # type: ignore[operator]
            advance(len(part))
    if not blocks:
        raise DataError("the split has no captions", hint="choose a split with captions")
    return np.concatenate(blocks)[row_of]


def _known_name(open_clip: Any, name: str) -> str:
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        _check_config(path)
        open_clip.add_model_config(path)
        return path.stem
    known = open_clip.list_models()
    if name not in known:
        raise UsageError(f"open_clip has no model {name!r}", hint=f"it has {len(known)}, for instance ViT-B-32")
    return name


def _check_config(path: Path) -> None:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not the JSON of an open_clip model") from error
    if not isinstance(content, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= content.keys():
        raise UsageError(
            f"{path} does not describe an open_clip model", hint="it needs embed_dim, vision_cfg and text_cfg"
        )


def _first_tag(open_clip: Any, name: str, progress: Progress) -> str:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        raise UsageError(f"open_clip lists no weights for {name}", hint=f"give a file: open_clip:{name}:CHECKPOINT")
    progress.say(f"no checkpoint was named: taking open_clip's {tags[0]} for {name}")
    return str(tags[0])


def _build(open_clip: Any, name: str, tag: str) -> tuple[nn.Module, Callable[[Any], Tensor], Any]:
    pretrained = None if Path(tag).is_file() else tag
    if pretrained is not None and tag not in open_clip.list_pretrained_tags_by_model(name):
        raise DataError(f"checkpoint {tag} is neither a file nor one of open_clip's for {name}")
    try:
        logging.disable(logging.WARNING)  # it warns of random weights, which our checkpoint is about to replace
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        return model, transform, open_clip.get_tokenizer(name)
    except Exception as error:  # a hub that cannot be reached raises one of many kinds
        reason = " ".join(str(error).split())[:200]
        raise CmpaglError(
            f"open_clip could not build {name} ({reason})", hint="give a local checkpoint file"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Tensors only (weights_only=True), also where they lie under state_dict or carry a trainer's `module.`."""
    from cmpagl_core.models.weights import read_foreign

    tensors = read_foreign(path)
    state = {key.removeprefix("module."): value for key, value in tensors.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise MismatchError(f"{path} does not hold the weights of open_clip's {name} ({first})") from error


def _sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names and values, so that a file and a fetched copy of it are one model."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode("utf-8"))
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
