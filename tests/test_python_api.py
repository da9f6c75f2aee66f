"""The package from Python: the page's examples run as they stand, and importing it loads nothing heavy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cmpagl_core
from cmpagl_core import evaluate, evaluate_scores, prepare, rerank, train
from cmpagl_core.errors import UsageError
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "python.md"
EXAMPLES = re.findall(r"^## (.*?)$.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def workspace(tiny_run: Path, tiny_prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    shutil.copytree(tiny_prepared, tmp_path / "data" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_examples_of_the_page_run(workspace: Path, title: str, code: str) -> None:
    assert len(code.strip().splitlines()) <= 12
    exec(compile(code, f"docs/python.md, {title}", "exec"), {})


def test_importing_the_package_loads_nothing_heavy() -> None:
    told = "import cmpagl_core, sys; print([m for m in ('torch', 'numpy', 'pydantic', 'PIL') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert {"train", "open_index", "open_run"} <= set(dir(cmpagl_core))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cmpagl_core.nothing  # noqa: B018


def test_data_training_and_evaluation_are_functions(tmp_path: Path) -> None:
    prepared = prepare("synthetic", tmp_path, name="drawn", count=24, image_size_px=64)
    assert len(prepared.split("all")) == 24
    small = ("image_encoder.width=8", "image_encoder.depths=[2,2,2,2]", "image_encoder.num_heads=[1,1,1,1]")
    run = train(
        "quickstart",
        tmp_path,
        data="drawn",
        name="small",
        overrides=(
            "train.epochs=1", "train.batch_size=8", "data.image_size_px=64", "image_encoder.size=custom", *small,
            "image_encoder.backbone=none", "image_encoder.global_stages=[4]", "text_encoder.weights=random",
            "text_encoder.size=tiny", "text_encoder.layers=1", "fusion_encoder.layers=1", "losses.embed_dim=16",
        ),
    )  # fmt: skip
    assert run.root == tmp_path / "runs" / "small"
    report = evaluate("small", tmp_path, rerank="none")
    assert 0 <= report.rows[0].mr <= 100


def test_scores_are_evaluated_and_re_ranked_as_by_the_commands() -> None:
    perfect = np.eye(4)
    assert evaluate_scores(perfect, range(4)).mr == 100.0
    scores = np.random.default_rng(0).standard_normal((6, 9))
    i2t, t2i = rerank(scores, "csls")
    np.testing.assert_allclose(i2t, t2i.T)
    i2t, t2i = rerank(scores, "smr", gammas=(0.0, 0.0))
    np.testing.assert_array_equal(np.argsort(i2t, axis=1), np.argsort(scores, axis=1))
    with pytest.raises(UsageError, match="never chosen"):
        rerank(scores, "sinkhorn")
