"""An open_clip model as an Encoder: a published one by name, a local checkpoint, or a pretrained tag of open_clip.

RemoteCLIP, GeoRSCLIP and SkyCLIP are checkpoints of open_clip models, so they can be used for search and evaluated
under our protocol. Nothing is downloaded without --download. Needs the extra `clip`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.clip_checkpoint import load_checkpoint
from cmpagl_core.encoders.decode import image_decoder
from cmpagl_core.encoders.encode import encode_with, unit_rows
from cmpagl_core.encoders.encoder import EncodedBatch, Encoder, EncodesImages, Features, Fingerprint, Origin, collect
from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, unique_texts
from cmpagl_core.encoders.prompts import encode_prompted, written_templates
from cmpagl_core.encoders.published_models import (
    PUBLISHED_MODELS,
    Activation,
    published_file,
    published_model,
    recognised,
)
from cmpagl_core.encoders.split_encoder import absolute_paths
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import canonical_json, sha256_file
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.progress import Progress

_IMAGES_AT_ONCE = 32
_TEXTS_AT_ONCE = 256
_MAX_CONFIG_BYTES = 1 << 20
_EXAMPLE = "open_clip:ViT-B-32:RemoteCLIP-ViT-B-32.pt"
_QUICK = "-quickgelu"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class OpenClipEncoder:
    """An open_clip model, ready to encode in float32."""

    def __init__(self, built: _Built, progress: Progress, device: torch.device) -> None:
        self._built, self._progress, self._device = built, progress, device
        self._model = built.model.to(device).eval()
        self._sha256 = _sha256(built.model.state_dict())

    @property
    def name(self) -> str:
        return f"open_clip:{self._built.name}:{Path(self._built.checkpoint).name}"

    @property
    def dim(self) -> int:
        return self._built.dim

    @property
    def batch_size(self) -> int:
        return _IMAGES_AT_ONCE

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self._sha256, self._built.preprocessing, "fp32")

    @property
    def origin(self) -> Origin:
        return Origin("open_clip", self._built.source)

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        """As in `Encoder`."""

        def encode(pixel_values: Tensor) -> Tensor:
            with torch.inference_mode():
                features: Tensor = self._model.encode_image(pixel_values.to(self._device))  # type: ignore[operator]
            return features

        yield from encode_with(encode, image_decoder(self._built.transform), images, _IMAGES_AT_ONCE)

    def encode_texts(self, texts: Sequence[str]) -> Features:
        unique, row_of = unique_texts(texts)
        blocks: list[Features] = [np.empty((0, self.dim), dtype=np.float32)]
        with self._progress.task("encode captions", len(unique), "captions") as advance:
            for start in range(0, len(unique), _TEXTS_AT_ONCE):
                part = unique[start : start + _TEXTS_AT_ONCE]
                with torch.inference_mode():
                    tokens = self._built.tokenize(part).to(self._device)
                    blocks.append(unit_rows(self._model.encode_text(tokens)))  # type: ignore[operator]
                advance(len(part))
        return np.concatenate(blocks)[row_of]


@dataclass(frozen=True)
class _Built:
    """A model built by open_clip. source: NAME:CHECKPOINT, with absolute paths of files."""

    name: str
    checkpoint: str
    source: str
    model: nn.Module
    dim: int
    transform: Callable[[Any], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    preprocessing: str


@dataclass(frozen=True)
class ClipOptions:
    """How an open_clip model is found and built.

    activation: of the file's weights, if neither its name nor its content determines it. models: folder with files of
    published models. download: whether missing weights may be downloaded. as_indexed: the model of an index, whose
    activation was determined when the index was built.
    """

    activation: Activation | None = None
    models: Path | None = None
    download: bool = False
    as_indexed: bool = False


def open_clip_encoder(
    spec: str, progress: Progress, device: torch.device, options: ClipOptions = ClipOptions()
) -> OpenClipEncoder:
    """Build a published model, `NAME` or `NAME:FILE`, or `open_clip:NAME:CHECKPOINT`.

    NAME: one in `published_models.py`, or after `open_clip:` an architecture or a JSON file that describes one.
    CHECKPOINT: a local file, or a pretrained tag of open_clip. Raises UsageError for an unknown name, a missing
    checkpoint or activation, or if open_clip is not installed, DataError for a checkpoint that does not exist,
    MismatchError for one of another architecture.
    """
    name, checkpoint = _taken_apart(spec, options, progress)
    try:
        import open_clip
    except ImportError as error:
        raise UsageError("open_clip is not installed", hint="pip install 'cmpagl[clip]'") from error
    known = _known_name(open_clip, name)
    if not checkpoint:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(known)[:5])
        raise UsageError(
            f"{spec} has no checkpoint",
            hint=f"add a file, as in {_EXAMPLE}" + (f", or a pretrained tag of open_clip ({tags})" if tags else ""),
        )
    file = Path(checkpoint)
    if file.is_file():
        if not options.as_indexed:
            known = _with_activation(open_clip, known, file, options.activation, progress)
        model, transform, tokenize = _build(open_clip, known, None, options.download)
        load_checkpoint(model, file, known)
    else:
        _check_tag(open_clip, known, checkpoint, options)
        model, transform, tokenize = _build(open_clip, known, checkpoint, options.download)
    described = Path(name).absolute() if Path(name).is_file() else known
    built = _Built(
        name=known,
        checkpoint=checkpoint,
        source=f"{described}:{file.absolute() if file.is_file() else file}",
        model=model,
        dim=int(open_clip.get_model_config(known)["embed_dim"]),
        transform=transform,
        tokenize=tokenize,
        preprocessing=f"open_clip: {canonical_json(open_clip.get_model_preprocess_cfg(model))}",
    )
    return OpenClipEncoder(built, progress, device)


def encoder_features(
    encoder: Encoder,
    split: DataSplit,
    progress: Progress,
    manifest_sha256: str = "",
    templates: Sequence[str] = (),
    images_by: EncodesImages | None = None,
) -> FeatureSet:
    """Encode a split with any encoder, its captions in the wording of some templates. images_by: as in `build_index`.

    Raises DataError for an image that cannot be read, or without captions.
    """
    if not split.captions:
        raise DataError("the split has no captions", hint="choose a split with captions")
    return FeatureSet(
        image_features=collect((images_by or encoder).encode_images(split.images), len(split), progress),
        text_features=encode_prompted(encoder.encode_texts, split.captions, templates),
        text_image=split.caption_image,
        image_ids=split.image_ids,
        image_sha256=split.image_sha256,
        paths=absolute_paths(split.paths),
        captions=split.captions,
        info=FeatureInfo(
            model=encoder.name,
            dataset=split.dataset,
            manifest_sha256=manifest_sha256,
            split=split.name,
            split_sha256=split.sha256,
            **asdict(encoder.fingerprint),
            templates=written_templates(templates),
        ),
    )


def _known_name(open_clip: Any, name: str) -> str:
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        _check_config(path)
        open_clip.add_model_config(path)
        return path.stem
    known = open_clip.list_models()
    if name not in known:
        raise UsageError(f"open_clip has no model {name!r}", hint=f"it has {len(known)} others, for instance ViT-B-32")
    return name


def _check_config(path: Path) -> None:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a JSON description of an open_clip model") from error
    if not isinstance(content, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= content.keys():
        raise UsageError(
            f"{path} does not describe an open_clip model", hint="it needs embed_dim, vision_cfg and text_cfg"
        )


def _taken_apart(spec: str, options: ClipOptions, progress: Progress) -> tuple[str, str]:
    """Architecture and checkpoint of a spec."""
    kind, _, rest = spec.partition(":")
    if kind == "open_clip":
        name, _, checkpoint = rest.partition(":")
        if name:
            return name, checkpoint
    if not kind or kind == "open_clip" or (rest and not any(kind == model.name for model in PUBLISHED_MODELS)):
        names = ", ".join(model.name for model in PUBLISHED_MODELS)
        raise UsageError(f"model {spec!r} is not open_clip:NAME:CHECKPOINT", hint=f"as {_EXAMPLE}; or one of {names}")
    model = published_model(kind)
    file = Path(rest) if rest else published_file(model, options.models, options.download)
    if not file.is_file():
        raise DataError(
            f"there are no weights at {file}", hint=f"`cmpagl models show {model.name}` says where to get them"
        )
    if model.sha256 and sha256_file(file) != model.sha256:
        progress.say(f"{file} has another SHA-256 than the known file of {model.name}; it is loaded anyway")
    return model.spec, str(file)


def _with_activation(open_clip: Any, name: str, file: Path, asked: Activation | None, progress: Progress) -> str:
    """The architecture's name with the activation of the file's weights.

    Raises UsageError if the user must choose: OpenAI architectures exist with either.
    """
    other = f"{name}{_QUICK}"
    if name.endswith(_QUICK):
        if asked == "gelu":
            raise UsageError(f"{name} has QuickGELU, but --activation is gelu", hint="leave out -quickgelu")
        return name
    if other not in open_clip.list_models():
        if asked is not None:
            raise UsageError(
                f"--activation is for OpenAI's architectures, but {name} has a fixed one", hint="leave it out"
            )
        return name
    if asked is not None:
        return other if asked == "quickgelu" else name
    model = recognised(name, file, sha256_file(file))
    if model is None:
        raise UsageError(
            f"the activation of {file.name} is unknown, and {name} exists with both",
            hint="pass --activation quickgelu (trained from OpenAI's weights) or gelu (from LAION's, or from scratch)",
        )
    progress.say(f"{file.name} is {model.name}: built with {model.activation}")
    return model.spec if model.architecture == name else name


def _check_tag(open_clip: Any, name: str, tag: str, options: ClipOptions) -> None:
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        raise DataError(f"checkpoint {tag} is neither a file nor a pretrained tag of open_clip for {name}")
    if options.activation is not None:
        raise UsageError("--activation is for files; open_clip knows that of its tags", hint="leave it out")
    if not options.download and not _is_here(open_clip, name, tag):
        raise DataError(
            f"open_clip's checkpoint {tag} for {name} is not on this machine and --download was not passed",
            hint="pass --download to `cmpagl index` or `cmpagl export`",
        )


def _is_here(open_clip: Any, name: str, tag: str) -> bool:
    """Whether open_clip has already downloaded a checkpoint, from its preferred hub."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").rpartition("/")
    wanted = Path(file or "open_clip_pytorch_model.bin")
    files = [wanted.name, wanted.with_suffix(".safetensors").name, "open_clip_model.safetensors"]
    return bool(repository) and any(isinstance(try_to_load_from_cache(repository, one), str) for one in files)


def _build(
    open_clip: Any, name: str, tag: str | None, download: bool
) -> tuple[nn.Module, Callable[[Any], Tensor], Any]:
    """The model, its preprocessing and its tokenizer. tag: of weights; None: random ones, about to be replaced."""
    try:
        logging.disable(logging.WARNING)  # it warns of random weights, which our checkpoint is about to replace
        with nullcontext() if download else _offline():
            preprocessing = {} if tag else _preprocessing(open_clip, name)
            model, _, transform = open_clip.create_model_and_transforms(name, pretrained=tag, **preprocessing)
            return model, transform, open_clip.get_tokenizer(name)
    except Exception as error:  # a hub that cannot be reached raises one of many kinds
        reason = " ".join(str(error).split())[:200]
        hint = "check the network" if download else "pass --download to fetch what it needs, such as a tokenizer"
        raise CmpaglError(f"open_clip could not build {name} ({reason})", hint=hint) from error
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _offline() -> Iterator[None]:
    """Whatever asks the hub inside the block finds what was fetched before, and nothing else."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _preprocessing(open_clip: Any, name: str) -> dict[str, Any]:
    """The preprocessing of an architecture's published weights if all agree; open_clip gives files OpenAI's."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    found = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    same = {key: {canonical_json(cfg.get(key)) for cfg in found} for key in _PREPROCESSING}
    if not found or any(len(values) != 1 for values in same.values()):
        return {}
    return {f"image_{key}": found[0][key] for key in _PREPROCESSING if found[0].get(key) is not None}


def _sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names and values, so that a file and a downloaded copy of it are the same model."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode("utf-8"))
        digest.update(state[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
