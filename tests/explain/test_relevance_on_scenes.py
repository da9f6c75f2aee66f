"""On drawn scenes unseen in training, relevance of "storage tanks" falls on the tanks, by the scenes' truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import Result

from cmpagl_core.explain.relevance import explain
from cmpagl_core.runs import open_run
from cmpagl_core.synthetic.kinds import kind_of
from cmpagl_core.synthetic.scene import DrawnScene, draw_scene

# The quickstart with a small text encoder, windows of 2 x 2 tokens, so that a token stays near its place, and no
# pre-alignment: with it, the hard negatives of these few scenes are near-copies of the matches and ITM only guesses.
TRAINED = (
    "image_encoder.width=16",
    "image_encoder.num_heads=[1, 1, 1, 4]",
    "image_encoder.window_size=2",
    "image_encoder.layer_scale_init=0.1",
    "text_encoder.size=tiny",
    "text_encoder.weights=random",
    "text_encoder.layers=2",
    "text_encoder.pooling=cls",
    "losses.pre_alignment=false",
    "losses.mlm=1.0",
    "losses.mlm_probability=0.3",
    "train.epochs=30",
    "train.validate_every_epochs=30",
    "evaluate.itm_k=0",
    "evaluate.smr=false",
)
SCENES = 50
UNSEEN_SEED = 1000
SIZE_PX = 224


def tank_scenes() -> Iterator[DrawnScene]:
    """The first scenes with storage tanks, of a seed that no training uses."""
    numbers = (number for number in range(100 * SCENES) if kind_of(number).scene == "storagetanks")
    return (draw_scene(number, UNSEEN_SEED, SIZE_PX) for number, _ in zip(numbers, range(SCENES), strict=False))


def inside(scene: DrawnScene) -> NDArray[np.bool_]:
    """Which pixels lie in the box of a tank: [S, S]."""
    mask = np.zeros((SIZE_PX, SIZE_PX), dtype=np.bool_)
    for left, top, right, bottom in scene.truth.boxes_of("storage tank"):
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.slow
def test_heat_for_storage_tanks_is_twice_as_strong_on_the_tanks(cmpagl: Callable[..., Result], tmp_path: Path) -> None:
    overrides = [part for override in TRAINED for part in ("--set", override)]
    for call in (("prepare", "synthetic", "--count", "800"), ("train", "quickstart", "--name", "seeing", *overrides)):
        result = cmpagl(*call)
        assert result.exit_code == 0, result.output
    loaded = open_run(tmp_path / "runs" / "seeing").load()
    on, off = [], []
    for scene in tank_scenes():
        scene.image.save(tmp_path / scene.truth.file)
        relevance = explain(loaded, tmp_path / scene.truth.file, "storage tanks").relevance
        pixels = np.asarray(
            Image.fromarray(relevance / relevance.mean()).resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST)
        )
        mask = inside(scene)
        assert mask.any()
        on.append(float(pixels[mask].mean()))
        off.append(float(pixels[~mask].mean()))
    assert len(on) == SCENES
    print(f"mean relevance {np.mean(on):.2f} on tanks, {np.mean(off):.2f} elsewhere: {np.mean(on) / np.mean(off):.2f}x")
    assert np.mean(on) >= 2 * np.mean(off)
    assert np.median(np.array(on) / np.array(off)) >= 2
