"""Runs, the results of trainings: folders that are written atomically, checked on opening, and loaded as models."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from cmpagl_core import __version__
from cmpagl_core.errors import CmpaglError, DataError, MismatchError, check_format
from cmpagl_core.files import (
    FileStamp,
    atomic_path,
    canonical_json,
    now,
    partial_folder,
    read_json,
    sha256_file,
    sha256_text,
    write_json,
    write_text,
)
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.workspace import Workspace

if TYPE_CHECKING:  # opening a run needs neither torch nor transformers, only building its model does
    import torch

    from cmpagl_core.models.bert import BertShape
    from cmpagl_core.models.cmpagl import CmpaglModel
    from cmpagl_core.models.tokenizer import CaptionTokenizer

RUN_FORMAT = 3
TRAINING_VERSION = 3
"""Incremented by hand when training the same recipe gives other weights, so that cached variants are retrained."""

RECIPE_FILE = "recipe.yaml"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
SEEN_FILE = "seen.json"
INFO_FILE = "run.json"
LOG_FILE = "log.jsonl"
RESUME_FOLDER = "resume"

_MAX_JSON_BYTES = 64 << 20
_WORDS = "text_encoder.embeddings.word_embeddings.weight"
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Code:
    """The code that trained a run."""

    version: str
    commit: str | None
    training_version: int = TRAINING_VERSION


@dataclass(frozen=True)
class BestEpoch:
    """The validation result of the saved weights: mR in percent, and the epoch."""

    epoch: int
    mr: float


@dataclass(frozen=True)
class Seen:
    """A run's training and selection data by hash, so that overlap with any data can be found.

    Images by the SHA-256 of their files, captions by the keys of evaluation.protocol.
    """

    train_images: frozenset[str]
    train_captions: frozenset[str]
    selection_images: frozenset[str]


@dataclass(frozen=True)
class RunInfo:
    """The content of run.json, written once. Hashes are hex digests of SHA-256."""

    name: str
    dataset: str
    dataset_root: str
    manifest_sha256: str
    train_sha256: str
    selection_sha256: str
    recipe_name: str
    recipe_sha256: str
    code: Code
    versions: dict[str, str]
    best: BestEpoch
    vocab_size: int
    text_shape: dict[str, int | float]  # BERT's, so that loading needs none of its files
    seed: int
    epochs: int
    parameters: int
    elapsed_s: float
    seconds_per_epoch: float
    started_at: str
    device: str
    threads: int
    precision: str  # of the training: the recipe's, or fp32 if the device does not support it
    start_key: str = ""  # of the distilled weights that Gswin began with, if it did
    made_at: str = ""
    files: dict[str, FileStamp] = field(default_factory=dict)  # all others that make the run
    format_version: int = RUN_FORMAT
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def weights_sha256(self) -> str:
        """Identity of the model; empty before the run is written."""
        return self.files[WEIGHTS_FILE].sha256 if WEIGHTS_FILE in self.files else ""


@dataclass(frozen=True)
class LoadedModel:
    """A run's model, ready to encode: in evaluation mode, on its device."""

    model: CmpaglModel
    tokenizer: CaptionTokenizer
    recipe: Recipe
    sha256: str
    device: torch.device


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    root: Path
    recipe: Recipe
    info: RunInfo

    @property
    def weights_path(self) -> Path:
        return self.root / WEIGHTS_FILE

    @property
    def tokenizer_path(self) -> Path:
        return self.root / TOKENIZER_FILE

    @property
    def log_path(self) -> Path:
        return self.root / LOG_FILE

    @cached_property
    def seen(self) -> Seen:
        """Its training and selection data. Raises DataError or MismatchError for a broken or changed file."""
        path = self.root / SEEN_FILE
        return _parse(Seen, json.loads(_checked_text(path, self.info)), path)

    def load(self, device: torch.device | None = None) -> LoadedModel:
        """Build the model and read its weights onto `device` (CPU if None).

        Raises MismatchError if the weights are not those of run.json or do not fit the recipe.
        """
        found = sha256_file(self.weights_path)
        if found != self.info.weights_sha256:
            raise _changed(self.weights_path, found, self.info)
        import torch

        from cmpagl_core.models.bert import BertShape
        from cmpagl_core.models.cmpagl import build_model
        from cmpagl_core.models.kernels.use import use_kernels
        from cmpagl_core.models.tokenizer import CaptionTokenizer

        shape = BertShape.from_dict(self.info.text_shape)
        tensors = read_tensors(self.weights_path)
        _check_vocabulary(self, shape, tensors)
        model = build_model(self.recipe, self.info.vocab_size, pretrained=False, text_shape=shape)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise MismatchError(
                f"{self.weights_path} does not fit {self.root / RECIPE_FILE} ({_first_line(error)})",
                hint="the recipe must be the one the run was trained with",
            ) from error
        model.image_encoder.fold_backbone_norms()
        target = torch.device("cpu") if device is None else device
        text = _checked_text(self.tokenizer_path, self.info)
        tokenizer = CaptionTokenizer.from_json(text, self.recipe.data.max_caption_tokens)
        return LoadedModel(use_kernels(model, target).eval(), tokenizer, self.recipe, found, target)


def open_run(path: Path, check_weights: bool = True) -> Run:
    """Open a finished run and check its files against run.json; small ones are always hashed.

    check_weights: compare the weights' size and time (their hash, if only the time differs); `Run.load` always hashes
    them. Raises DataError if a file is missing or invalid, MismatchError if one was changed.
    """
    for name in (INFO_FILE, RECIPE_FILE, WEIGHTS_FILE, TOKENIZER_FILE, SEEN_FILE):
        if not (path / name).is_file():
            unfinished = (path / RESUME_FOLDER).is_dir()
            hint = "finish it with `cmpagl train --resume`" if unfinished else "train one with `cmpagl train RECIPE`"
            raise DataError(f"{path} is not a finished run: it has no {name}", hint=hint)
    info = _read_info(path / INFO_FILE)
    recipe = parse_recipe(_checked_text(path / RECIPE_FILE, info), str(path / RECIPE_FILE))
    _checked_text(path / TOKENIZER_FILE, info)
    weights = path / WEIGHTS_FILE
    if check_weights and not info.files[WEIGHTS_FILE].fits(weights):
        raise _changed(weights, sha256_file(weights), info)
    return Run(path, recipe, info)


def list_runs(workspace: Workspace, progress: Progress, folder: str = "runs") -> list[Run]:
    """The finished runs in a folder of the workspace, newest first.

    Broken ones are reported through `progress` and left out.
    """
    found = []
    for marker in (workspace.root / folder).glob(f"*/{INFO_FILE}"):
        try:
            found.append(open_run(marker.parent, check_weights=False))
        except CmpaglError as error:
            progress.say(f"left out: {error}")
    return sorted(found, key=lambda run: (run.info.made_at, run.root.name), reverse=True)


def save_run(
    root: Path, recipe: Recipe, info: RunInfo, state: Mapping[str, torch.Tensor], tokenizer_json: str, seen: Seen
) -> Run:
    """Write a run folder, as `write_files` and `write_info` do, and open it."""
    return write_info(root, info, write_files(root, recipe, state, tokenizer_json, seen))


def write_files(
    root: Path, recipe: Recipe, state: Mapping[str, torch.Tensor], tokenizer_json: str, seen: Seen
) -> dict[str, FileStamp]:
    """Write all files of a run except run.json, and return their stamps for it.

    state: the model's tensors, stored unchanged. Raises CmpaglError if writing fails.
    """
    write_text(root / RECIPE_FILE, recipe.to_yaml())
    write_text(root / TOKENIZER_FILE, tokenizer_json)
    write_text(root / SEEN_FILE, canonical_json({name: sorted(hashes) for name, hashes in vars(seen).items()}))
    write_tensors(root / WEIGHTS_FILE, state, {"format_version": RUN_FORMAT, "recipe_sha256": recipe.sha256()})
    return {name: FileStamp.of(root / name) for name in (RECIPE_FILE, TOKENIZER_FILE, SEEN_FILE, WEIGHTS_FILE)}


def write_info(root: Path, info: RunInfo, files: Mapping[str, FileStamp]) -> Run:
    """Write run.json last, so that a folder with one is complete; it is never written again.

    files: from `write_files`. Raises CmpaglError if writing fails.
    """
    write_json(root / INFO_FILE, asdict(replace(info, made_at=now(), files=dict(files))))
    return open_run(root)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, object]) -> None:
    """Write tensors to a safetensors file, atomically and byte-identical for the same content.

    about: stored as JSON under one metadata key (several keys would be stored in random order).
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
             for name, tensor in tensors.items()}  # fmt: skip
    with atomic_path(path) as partial, partial_folder(path) as folder:
        written = folder / path.name  # beside which safetensors writes a file of its own
        try:
            save_file(plain, written, metadata={"cmpagl": canonical_json(about)})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        written.replace(partial)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file onto the CPU. Raises DataError if it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as safetensors ({_first_line(error)})") from error
    return tensors


def current_code() -> Code:
    """The version of this package, and the commit if it runs from a checkout."""
    return Code(__version__, _commit())


def current_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect training."""
    packages = ("torch", "transformers", "timm", "tokenizers", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _read_info(path: Path) -> RunInfo:
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    check_format(path, version, RUN_FORMAT, "use the cmpagl that wrote it, or train again")
    info = _parse(RunInfo, content, path)
    for name in (RECIPE_FILE, TOKENIZER_FILE, SEEN_FILE, WEIGHTS_FILE):
        if name not in info.files:
            raise DataError(f"{path} has no hash of {name}", hint="the file was changed by hand or is broken")
    return info


def _parse(kind: type[_Record], content: object, path: Path) -> _Record:
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {key}: {first['msg']}", hint="the file was changed by hand or is broken") from error


def _check_vocabulary(run: Run, shape: BertShape, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check the recorded shape against the weights, before a model of that size is built."""
    words = tensors.get(_WORDS)
    found = (shape.vocab_size, shape.hidden_size)
    if words is not None and (found != tuple(words.shape) or run.info.vocab_size > shape.vocab_size):
        held = " x ".join(map(str, words.shape))
        raise MismatchError(
            f"{run.root / INFO_FILE} has {run.info.vocab_size:,} words and embeddings of "
            f"{found[0]:,} x {found[1]:,}, but {WEIGHTS_FILE} has {held}",
            hint="restore the run folder as it was, or train again",
        )


def _checked_text(path: Path, info: RunInfo) -> str:
    """A file of the run, checked against run.json. Raises MismatchError if it differs."""
    text = _read_text(path)
    found = sha256_text(text)
    if found != info.files[path.name].sha256:
        raise _changed(path, found, info)
    return text


def _changed(path: Path, found: str, info: RunInfo) -> MismatchError:
    return MismatchError(
        f"{path} is not the file that {INFO_FILE} beside it describes "
        f"(sha256 {found[:12]}, not {info.files[path.name].sha256[:12]})",
        hint="restore the run folder as it was, or train again",
    )


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise DataError(f"{path} is too large to have been written by cmpagl ({path.stat().st_size:,} bytes)")
        return path.read_bytes().decode("utf-8")  # line ends are part of the hash too
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _commit() -> str | None:
    checkout = Path(__file__).parent.parent
    if not (checkout / ".git").exists():  # installed: an enclosing repository is not ours
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603  # our words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
