"""The encoder that a user chooses: a run, the newest run, or another model."""

from __future__ import annotations

from cmpagl_core.encoders.encoder import Encoder
from cmpagl_core.encoders.open_clip import ClipOptions, open_clip_encoder
from cmpagl_core.errors import UsageError
from cmpagl_core.session import Session


def named_encoder(session: Session, run: str | None, model: str | None, options: ClipOptions) -> Encoder:
    """A run by name or path, the newest one by default, or a model as in `open_clip_encoder`.

    Raises UsageError if both are given, and what opening them raises.
    """
    if model is not None and run is not None:
        raise UsageError("--model and --run both name a model", hint="give one of them")
    if model is not None:
        return open_clip_encoder(model, session.progress, session.device(), options)
    if options.activation is not None or options.download:
        raise UsageError("--activation and --download are for --model", hint="leave them out, or pass --model")
    from cmpagl_core.encoders.cmpagl import CmpaglEncoder
    from cmpagl_core.runs import open_run

    opened = open_run(session.workspace.find("runs", run))
    return CmpaglEncoder(opened, session.progress, session.device(), session.workspace.cache)
