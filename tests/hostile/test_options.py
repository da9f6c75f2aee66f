"""Option values that nobody means: each is refused as a wrong call or as wrong data, and nothing is computed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cmpagl_core.errors import ExitCode
from tests.hostile.conftest import check_output

Cmpagl = Callable[..., Result]

CASES = (
    ("prepare", "synthetic", "--count", "4", "--size", "1"),
    ("prepare", "synthetic", "--count", "4", "--size", "99999999"),
    ("prepare", "folder", "IMAGES", "--split", "nan,1,1"),
    ("prepare", "folder", "IMAGES", "--split", "inf,1,1"),
    ("prepare", "folder", "IMAGES", "--split", "-1,1,1"),
    ("prepare", "folder", "\0"),
    ("tune", "smr", "--split", "val", "--gammas", "nan"),
    ("tune", "smr", "--split", "val", "--gammas", "inf,1"),
    ("tune", "smr", "--split", "val", "--gammas", "1e308,1e-308"),
    ("tune", "smr", "--split", "val", "--gammas", "9" * 400),
    ("tune", "smr", "--split", "val", "--gammas", ""),
    ("retrieve", "a", "-k", "0"),
    ("retrieve", ""),
    ("retrieve", "--image", "\0"),
    ("evaluate", "--features", "\0"),
    ("compare", "", ""),
    ("compare", ",", ","),
    ("report", "../../x"),
    ("index", ".", "--name", "\0"),
    ("index", "\0"),
    ("train", "ucm-cpu", "--name", "../x"),
    ("train", "a\0b"),
    ("ablate", "tiny", "--seeds", "-1"),
    ("recipe", "show", "\0"),
)


@pytest.mark.parametrize("words", CASES, ids=[" ".join(words)[:50].replace("\0", "NUL") for words in CASES])
def test_an_absurd_option_is_refused(
    words: tuple[str, ...], cmpagl: Cmpagl, tiny_run: Path, tiny_images: Path, tmp_path: Path
) -> None:
    for kind in ("data", "runs"):
        shutil.copytree(tiny_run.parent.parent / kind / "tiny", tmp_path / kind / "tiny")
    result = cmpagl(*(str(tiny_images) if word == "IMAGES" else word for word in words))
    check_output(result.output)
    assert result.exit_code in (ExitCode.USAGE, ExitCode.DATA), result.output
