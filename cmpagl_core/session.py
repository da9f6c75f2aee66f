"""What every step of one call needs: the workspace, the progress display and the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cmpagl_core.progress import Progress
from cmpagl_core.workspace import Workspace

if TYPE_CHECKING:  # a text query needs none
    import torch


@dataclass(frozen=True)
class Session:
    """Passed on as a whole. device: called when a model is needed, since choosing one imports torch."""

    workspace: Workspace
    progress: Progress
    device: Callable[[], torch.device]
