"""Every command in a workspace where nothing may be written: what needs no new file is done, the rest says so."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from cmpagl_core.errors import ExitCode
from tests.conftest import TINY_RECIPE
from tests.hostile.conftest import check_output
from tests.hostile.test_streams import Call, called

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has capabilities to be dropped"),
]

COMMANDS = {
    ("runs", "list"): ExitCode.DONE,
    ("evaluate", "--split", "test", "--itm-k", "0", "--rerank", "none"): ExitCode.FAILURE,
    ("tune", "smr", "--split", "val", "--gammas", "0", "--no-keep", "--out", "/dev/null"): ExitCode.DONE,
    ("tune", "smr", "--split", "val", "--gammas", "0"): ExitCode.FAILURE,
    ("prepare", "synthetic", "--count", "3", "--size", "64"): ExitCode.FAILURE,
    ("train", "tiny.yaml", "--data", "tiny", "--name", "new"): ExitCode.FAILURE,
    ("export", "--split", "test"): ExitCode.FAILURE,
    ("index",): ExitCode.FAILURE,
    ("retrieve", "a square"): ExitCode.FAILURE,
    ("ablate", "tiny.yaml", "--data", "tiny", "--no-global-window"): ExitCode.FAILURE,
    ("report",): ExitCode.FAILURE,
}


def test_a_read_only_workspace_is_named_and_left_alone(tiny_run: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    for kind in ("data", "runs"):
        shutil.copytree(tiny_run.parent.parent / kind / "tiny", workspace / kind / "tiny")
    (workspace / "tiny.yaml").write_text(TINY_RECIPE)
    folders = [workspace, *(path for path in workspace.rglob("*") if path.is_dir())]
    before = sorted(workspace.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        answers = called([Call(words, "utf-8", str(workspace), is_anyone=True) for words in COMMANDS])
    finally:
        for folder in folders:
            folder.chmod(0o755)
    for (words, code), (ended, output) in zip(COMMANDS.items(), answers, strict=True):
        check_output(output)
        assert ended == code, (words, output)
        assert code == ExitCode.DONE or "Permission denied" in output, (words, output)
        assert words[0] != "evaluate" or "cosine" in output, "what was computed is shown, though it cannot be saved"
    assert sorted(workspace.rglob("*")) == before
