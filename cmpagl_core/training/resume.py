"""The state from which a killed training resumes and ends with identical weights: one file, replaced atomically.

Random numbers derive from seed, epoch and step, so no generator state is saved; the position in the training is JSON
in the same file as the tensors, so a kill cannot leave the two out of step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.files import newest
from cmpagl_core.runs import INFO_FILE, RESUME_FOLDER, TRAINING_VERSION, BestEpoch, read_tensors, write_tensors
from cmpagl_core.training.step import StepFigures

STATE_FILE = "state.safetensors"
STATE_FORMAT = 3


@dataclass
class Tally:
    """Sums over the steps of an epoch so far."""

    steps: int = 0
    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    unmatched_cosine: float = 0.0
    gradient_shares: dict[str, float] = field(default_factory=dict)
    waiting_s: float = 0.0
    elapsed_s: float = 0.0

    def add(self, figures: StepFigures, waited_s: float, elapsed_s: float) -> None:
        """Add a step."""
        self.steps += 1
        self.loss += figures.loss
        for name, value in figures.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        self.unmatched_cosine += figures.unmatched_cosine
        self.gradient_shares = figures.gradient_shares or self.gradient_shares
        self.waiting_s += waited_s
        self.elapsed_s += elapsed_s


@dataclass
class Position:
    """The position in a training, as JSON."""

    epoch: int = 0  # epoch of the next batch, from 0
    batch: int = 0  # of the next batch in its epoch
    step: int = 0  # optimiser steps taken
    best: BestEpoch | None = None
    validations_since_best: int = 0
    losses: list[float] = field(default_factory=list)  # of the epochs since the last validation
    log_bytes: int = 0
    elapsed_s: float = 0.0
    epochs_s: float = 0.0  # the part of it that epochs took
    started_at: str = ""
    tally: Tally = field(default_factory=Tally)
    monitor: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16's gradients


@dataclass(frozen=True)
class Identity:
    """What must be the same when a training is resumed."""

    recipe_name: str
    recipe_sha256: str
    manifest_sha256: str
    origins: dict[str, str]
    text_shape: dict[str, int | float]
    tokenizer_sha256: str
    training_version: int = TRAINING_VERSION
    format_version: int = STATE_FORMAT


def write_state(root: Path, identity: Identity, position: Position, tensors: Mapping[str, Tensor]) -> None:
    """Replace the state of the run at `root`. Raises CmpaglError if writing fails; the old state is then kept."""
    about = {"identity": asdict(identity), "position": asdict(position)}
    write_tensors(_state_path(root), tensors, about)


def has_state(root: Path) -> bool:
    """Whether a run is unfinished, so that `fit` can resume it."""
    return _state_path(root).is_file() and not (root / INFO_FILE).exists()


def remove_state(root: Path) -> None:
    """Remove the state of a finished run; one that was killed while doing so may have left a part of it."""
    shutil.rmtree(root / RESUME_FOLDER, ignore_errors=True)


def read_about(root: Path) -> tuple[Identity, Position]:
    """A run's saved state without its tensors. Raises DataError if it is missing or invalid."""
    path = _state_path(root)
    if not path.is_file():
        raise DataError(f"{root} has no training to resume", hint="start one with `cmpagl train RECIPE`")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("cmpagl", "null"))
        identity = TypeAdapter(Identity).validate_python(about["identity"])
        position = TypeAdapter(Position).validate_python(about["position"])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, ValidationError) as error:
        raise DataError(f"{path} is not a training state", hint="delete the run and train again") from error
    return identity, position


def read_state(root: Path, recipe_sha256: str, manifest_sha256: str) -> tuple[Identity, Position, dict[str, Tensor]]:
    """A run's state, checked against recipe, data set and code. Raises DataError or MismatchError."""
    identity, position = read_about(root)
    checks = (
        ("recipe", identity.recipe_sha256 == recipe_sha256),
        ("data set", identity.manifest_sha256 == manifest_sha256),
        ("training code", identity.training_version == TRAINING_VERSION and identity.format_version == STATE_FORMAT),
    )
    for what, same in checks:
        if not same:
            raise MismatchError(
                f"{root} was started with another {what} and cannot be resumed with this one", hint="train again"
            )
    return identity, position, read_tensors(_state_path(root))


def unfinished_run(runs: Path, recipe_name: str | None = None) -> Path:
    """The newest unfinished run of a recipe (of any, if None): it has a state and no run.json.

    Raises DataError if there is none.
    """
    found = [run for run in runs.glob("*") if has_state(run)]
    for run in sorted(found, key=lambda run: _state_path(run).stat().st_mtime_ns, reverse=True):
        if recipe_name is None or read_about(run)[0].recipe_name == recipe_name:
            return run
    of = "" if recipe_name is None else f" of {recipe_name}"
    last = newest(runs, INFO_FILE)
    hint = "start one with `cmpagl train RECIPE`" if last is None else f"{last.name} is finished"
    raise DataError(f"there is no unfinished training{of} in {runs}", hint=hint)


def _state_path(root: Path) -> Path:
    return root / RESUME_FOLDER / STATE_FILE
