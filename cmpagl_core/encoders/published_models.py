"""Published remote-sensing models that cmpagl knows by name: what they are, where to get them, how to load them (ours).

A weights file does not record its activation, and hardly its preprocessing, and wrong ones give wrong features without
an error. So both are listed here, each from the source that `note` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmpagl_core.errors import CmpaglError, DataError, UsageError

Activation = Literal["quickgelu", "gelu"]


@dataclass(frozen=True)
class PublishedModel:
    """One model. Preprocessing is open_clip's for the architecture; an empty text means unknown.

    verified: whether we have loaded the real file. sha256: its hex digest; RemoteCLIP's are from copies on the hub.
    """

    name: str
    architecture: str  # open_clip's name
    activation: Activation | Literal["own"]  # own: the architecture has one alone
    file: str
    licence: str
    source: str  # where its authors publish it
    hub: str = ""  # REPOSITORY/PATH on the Hugging Face hub, which `--download` fetches
    sha256: str = ""
    template: str = ""  # wording that its makers evaluate with
    note: str = ""
    verified: bool = False

    @property
    def spec(self) -> str:
        """The architecture with its activation, as open_clip names it."""
        return f"{self.architecture}-quickgelu" if self.activation == "quickgelu" else self.architecture


_REMOTECLIP = "their retrieval script starts from OpenAI's weights, so QuickGELU; their demo builds plain GELU"
_SKYSCRIPT = "https://opendatasharing.s3.us-west-2.amazonaws.com/SkyScript/ckpt"

PUBLISHED_MODELS: tuple[PublishedModel, ...] = (
    PublishedModel(
        name="remoteclip-b32",
        architecture="ViT-B-32",
        activation="quickgelu",
        file="RemoteCLIP-ViT-B-32.pt",
        licence="Apache-2.0",
        source="https://huggingface.co/chendelong/RemoteCLIP",
        hub="chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt",
        sha256="60014e395d930a3f2963d1d89c8522bf4ad56775571e4356e866864789af85c4",
        note=_REMOTECLIP,
    ),
    PublishedModel(
        name="remoteclip-l14",
        architecture="ViT-L-14",
        activation="quickgelu",
        file="RemoteCLIP-ViT-L-14.pt",
        licence="Apache-2.0",
        source="https://huggingface.co/chendelong/RemoteCLIP",
        hub="chendelong/RemoteCLIP/RemoteCLIP-ViT-L-14.pt",
        sha256="fcc2a7e21e171f4ffcb7a9c0206b8b74ac0c9eb83c67b576958b7a4ed6c8cecb",
        note=_REMOTECLIP,
    ),
    PublishedModel(
        name="remoteclip-rn50",
        architecture="RN50",
        activation="quickgelu",
        file="RemoteCLIP-RN50.pt",
        licence="Apache-2.0",
        source="https://huggingface.co/chendelong/RemoteCLIP",
        hub="chendelong/RemoteCLIP/RemoteCLIP-RN50.pt",
        note=_REMOTECLIP,
    ),
    PublishedModel(
        name="georsclip-b32",
        architecture="ViT-B-32",
        activation="quickgelu",
        file="RS5M_ViT-B-32.pt",
        licence="CC-BY-4.0",
        source="https://huggingface.co/Zilun/GeoRSCLIP",
        hub="Zilun/GeoRSCLIP/ckpt/RS5M_ViT-B-32.pt",
        note="their inference script loads it over OpenAI's weights, so QuickGELU",
    ),
    PublishedModel(
        name="georsclip-h14",
        architecture="ViT-H-14",
        activation="gelu",
        file="RS5M_ViT-H-14.pt",
        licence="CC-BY-4.0",
        source="https://huggingface.co/Zilun/GeoRSCLIP",
        hub="Zilun/GeoRSCLIP/ckpt/RS5M_ViT-H-14.pt",
        note="their inference script loads it over LAION-2B's weights, so GELU",
    ),
    PublishedModel(
        name="skyclip-b32",
        architecture="ViT-B-32",
        activation="gelu",
        file="SkyCLIP_ViT_B32_top50pct.pt",
        licence="MIT",
        source=f"{_SKYSCRIPT}/SkyCLIP_ViT_B32_top50pct.zip",
        template="a satellite image. {}",
        note="trained from LAION-2B's weights, so GELU; unpack the archive and name the .pt inside it",
    ),
    PublishedModel(
        name="skyclip-l14",
        architecture="ViT-L-14",
        activation="quickgelu",
        file="SkyCLIP_ViT_L14_top50pct.pt",
        licence="MIT",
        source=f"{_SKYSCRIPT}/SkyCLIP_ViT_L14_top50pct.zip",
        template="a satellite image. {}",
        note="trained from OpenAI's weights with QuickGELU forced; unpack the archive and name the .pt inside it",
    ),
    PublishedModel(
        name="git-rsclip-l16",
        architecture="ViT-L-16-SigLIP-256",
        activation="own",
        file="Git-RSCLIP.safetensors",
        licence="Apache-2.0",
        source="https://huggingface.co/lcybuaa/Git-RSCLIP",
        hub="lcybuaa/Git-RSCLIP/model.safetensors",
        note="a SigLIP in the layout of transformers, brought to open_clip's; its tokenizer comes from the hub, once",
    ),
)


def published_model(name: str) -> PublishedModel:
    """The model of that name. Raises UsageError listing the names."""
    for model in PUBLISHED_MODELS:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in PUBLISHED_MODELS)
    raise UsageError(f"no published model is called {name!r}", hint=f"known are {known}; or open_clip:NAME:CHECKPOINT")


def own_template(spec: str) -> str:
    """The template of a published model, by the name that a spec begins with; empty where none is known."""
    return next((model.template for model in PUBLISHED_MODELS if model.name == spec.partition(":")[0]), "")


def recognised(architecture: str, file: Path, sha256: str) -> PublishedModel | None:
    """The model of a file, by its content or by its name and architecture; None if unknown."""
    for model in PUBLISHED_MODELS:
        if sha256 and model.sha256 == sha256:
            return model
    for model in PUBLISHED_MODELS:
        if file.name == model.file and architecture == model.architecture:
            return model
    return None


def local_file(model: PublishedModel, folder: Path | None) -> Path | None:
    """The file of a published model in `folder` or in the hub's cache; None if it is in neither."""
    if folder is not None and (folder / model.file).is_file():
        return folder / model.file
    repository, path = _hub_parts(model)
    if not repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, path)
    return Path(found) if isinstance(found, str) else None


def published_file(model: PublishedModel, folder: Path | None, download: bool) -> Path:
    """The local file of a published model, downloaded if allowed. Raises DataError, which says how to get it."""
    found = local_file(model, folder)
    if found is not None:
        return found
    repository, path = _hub_parts(model)
    if repository and download:
        return _fetched(repository, path)
    ways = f"download {model.file} from {model.source}, and put it into {folder} or pass --model {model.name}:FILE"
    raise DataError(
        f"the weights of {model.name} are not on this machine",
        hint=f"pass --download, or {ways}" if repository else ways,
    )


def _hub_parts(model: PublishedModel) -> tuple[str, str]:
    """Repository and path in it; empty for a model that is not on the hub."""
    owner, _, rest = model.hub.partition("/")
    name, _, path = rest.partition("/")
    return (f"{owner}/{name}" if name else ""), path


def _fetched(repository: str, path: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, path))
    except Exception as error:  # an unreachable hub raises one of many exception types
        reason = " ".join(str(error).split())[:200]
        raise CmpaglError(
            f"{repository}/{path} could not be downloaded ({reason})", hint="check the network"
        ) from error
