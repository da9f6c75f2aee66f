"""The text half in NumPy gives the model's own features, and needs no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from cmpagl_core.encoders.cmpagl import write_text_tower
from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.encoders.text_tower import TextTower, open_text_tower, run_text_tower
from cmpagl_core.errors import DataError, MismatchError, RecipeError
from cmpagl_core.models.bert import BertShape
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import LoadedModel, open_run

TEXTS = [
    "a square",
    "field 3 with a bright square in it",
    "",
    "nothing of this is known: zebra, quagga",
    "square " * 500,
    "\N{AIRPLANE} \N{GRINNING FACE} plane",
    "a\ud800b",
    "Ünïcödé  and\ttabs\nand lines",
]


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedModel:
    return open_run(tiny_run).load()


def torch_features(loaded: LoadedModel, texts: list[str]) -> np.ndarray:
    rows = []
    with torch.inference_mode():
        for text in texts:
            tokens = loaded.tokenizer([text])
            rows.append(loaded.model.encode_texts(tokens.input_ids, tokens.attention_mask).features)
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    "shape", [(384, 12, 1536, 1e-12), (128, 4, 512, 1e-5), (768, 12, 3072, 1e-12)], ids=["minilm", "tiny", "bert-base"]
)
def test_the_tower_agrees_with_the_model(
    loaded: LoadedModel, tmp_path: Path, shape: tuple[int, int, int, float], pooling: str
) -> None:
    hidden, heads, inner, eps = shape
    size = BertShape(loaded.tokenizer.vocab_size, hidden, 4, heads, inner, 32, 2, eps)
    recipe = override_recipe(loaded.recipe, [f"text_encoder.pooling={pooling}"])
    model = build_model(recipe, loaded.tokenizer.vocab_size, text_shape=size).eval()
    with torch.no_grad():  # far from the small start, so that every nonlinearity bends
        for name, parameter in model.text_encoder.named_parameters():
            if "bias" in name or "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "layers" in name:
                parameter.mul_(4)
    other = replace(loaded, model=model, recipe=recipe)
    write_text_tower(tmp_path / "tower", other)
    found = open_text_tower(tmp_path / "tower").encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch_features(other, TEXTS), atol=1e-5)


def test_a_tower_gives_each_extractors_share_of_the_features_one_length(loaded: LoadedModel, tmp_path: Path) -> None:
    overrides = [
        "image_encoder.backbone=resnet10t",
        "image_encoder.depths=[0,0,0,2]",
        "image_encoder.backbone_strides=[32]",
    ]
    overrides += ["image_encoder.backbone_skip=true", "image_encoder.extra_backbones=[test_efficientnet]"]
    recipe = override_recipe(loaded.recipe, [*overrides, "image_encoder.extra_backbone_weights=[random]"])
    other = replace(loaded, model=build_model(recipe, loaded.tokenizer.vocab_size).eval(), recipe=recipe)
    found = tower(other, tmp_path).encode(TEXTS)
    np.testing.assert_allclose(found, torch_features(other, TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.reshape(len(TEXTS), 2, -1), axis=2), 0.5**0.5, atol=1e-5)


def tower(loaded: LoadedModel, tmp_path: Path) -> TextTower:
    write_text_tower(tmp_path / "tower", loaded)
    return open_text_tower(tmp_path / "tower")


def test_the_tower_says_how_it_reads_a_text(loaded: LoadedModel, tmp_path: Path) -> None:
    made = tower(loaded, tmp_path)
    assert made.read("a square").known == 2
    assert not made.read("a square").cut
    assert made.read("square " * 500).cut
    assert made.read("\N{GRINNING FACE}").known == 0


def test_a_query_needs_no_torch_and_no_transformers(loaded: LoadedModel, tmp_path: Path) -> None:
    tower(loaded, tmp_path)
    code = f"""
import sys
from pathlib import Path
import cmpagl_core.search.opening
from cmpagl_core.encoders.text_tower import open_text_tower
print(open_text_tower(Path({str(tmp_path / "tower")!r})).encode(["a square"]).shape)
print([name for name in ("torch", "transformers", "timm", "pandas", "pydantic", "PIL") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 32)", "[]"]


def test_a_run_is_its_own_tower(loaded: LoadedModel, tiny_run: Path) -> None:
    run = open_run(tiny_run)
    found = run_text_tower(run)
    assert found is not None
    assert found.info.model_sha256 == run.info.weights_sha256
    np.testing.assert_allclose(found.encode(TEXTS), torch_features(loaded, TEXTS), atol=1e-5)
    itm_alone = override_recipe(run.recipe, ["losses.pre_alignment=false"])
    assert run_text_tower(replace(run, recipe=itm_alone)) is None


def test_a_tower_whose_parts_do_not_fit_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "tower"
    write_text_tower(path, loaded)
    file = open_tensor_file(path)
    whole = {name: np.array(array) for name, array in file.arrays.items()}
    other_tokenizer = Tokenizer.from_str(whole["tokenizer"].tobytes().decode())
    other_tokenizer.add_tokens(["square!"])
    text = np.frombuffer(other_tokenizer.to_str().encode(), dtype=np.uint8)
    wrong = [
        ({"layers.0.output.dense.bias": np.zeros(3, np.float32)}, {}, DataError, "layers.0.output.dense.bias"),
        ({}, {"num_heads": 3}, DataError, "do not match"),
        ({}, {"max_tokens": 9999}, DataError, "do not match"),
        ({}, {"layers": 50}, DataError, "no tensor 'layers"),
        ({}, {"probes": 0}, DataError, "does not record its model"),
        ({}, {"probes": 3}, DataError, "do not match"),
        ({}, {"layers": -1}, DataError, "does not record its model"),
        ({}, {"kind": "feature_set"}, DataError, "not a text tower"),
        ({}, {"format_version": 7}, MismatchError, "format_version is 7"),
        ({"tokenizer": np.zeros(3, np.uint8)}, {}, MismatchError, "no valid tokenizer"),
        ({"tokenizer": text}, {}, MismatchError, "does not belong to its text encoder"),
    ]
    for arrays, about, kind, said in wrong:
        write_tensor_file(path, whole | arrays, file.about | about)
        with pytest.raises(kind, match=said):
            open_text_tower(path).encode(["square!"])


def test_the_tower_pools_the_same_layers_as_the_model(loaded: LoadedModel, tmp_path: Path) -> None:
    recipe = override_recipe(loaded.recipe, ["text_encoder.pooled_layers=[1]", "text_encoder.pooling=mean"])
    shape = BertShape.from_dict(loaded.model.text_encoder.shape.to_dict())
    model = build_model(recipe, loaded.tokenizer.vocab_size, text_shape=shape).eval()
    other = replace(loaded, model=model, recipe=recipe)
    assert model.text_projection.in_features == 2 * shape.hidden_size
    np.testing.assert_allclose(tower(other, tmp_path).encode(TEXTS), torch_features(other, TEXTS), atol=1e-5)
    assert open_text_tower(tmp_path / "tower").info.pooled_layers == (1,)
    with pytest.raises(RecipeError, match="must name different layers before the last one"):
        build_model(override_recipe(recipe, ["text_encoder.pooled_layers=[2]"]), loaded.tokenizer.vocab_size)
