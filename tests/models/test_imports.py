"""Weights by a hub's names, from a cache filled as the hub would: what is taken, listed, and refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from cmpagl_core.errors import MismatchError, RecipeError
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.imports import import_swin
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.models.weights import ImportReport, reachable
from cmpagl_core.recipe import ImageEncoderPart, Recipe, TextEncoderPart
from cmpagl_core.recipe_files import load_recipe, parse_recipe

PAPER = ("rsicd", "rsitmd", "ucm", "sydney")

HubFolder = Callable[[str], Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubFolder:
    """An empty cache of the hub; the call makes one repository's folder of files, as a download would."""
    root = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))

    def folder(repository: str) -> Path:
        commit = hashlib.sha1(repository.encode(), usedforsecurity=False).hexdigest()
        place = root / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        files = place / "snapshots" / commit
        files.mkdir(parents=True)
        return files

    return folder


def published_swin(size: str, classes: int) -> dict[str, Tensor]:
    """A checkpoint as timm publishes it, of half precision to be quick."""
    torch.manual_seed(0)
    model = timm.create_model(f"swin_{size}_patch4_window7_224", pretrained=False, num_classes=classes)
    return {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("size", "tag", "classes"),
    [
        ("tiny", "ms_in22k", 21841),
        pytest.param("tiny", "ms_in1k", 1000, marks=pytest.mark.slow),
        pytest.param("small", "ms_in22k", 21841, marks=pytest.mark.slow),
        pytest.param("base", "ms_in1k", 1000, marks=pytest.mark.slow),
    ],
)
def test_published_swins_are_imported_by_their_timm_names(hub: HubFolder, size: str, tag: str, classes: int) -> None:
    name = f"swin_{size}_patch4_window7_224.{tag}"
    assert not reachable(f"timm:{name}")
    published = published_swin(size, classes)
    save_file(published, hub(f"timm/{name}") / "model.safetensors")
    assert reachable(f"timm:{name}")
    encoder = GswinEncoder(ImageEncoderPart(size=size), 224)
    report = import_swin(encoder, f"timm:{name}")
    assert report.left_over == ("head.fc.bias", "head.fc.weight")
    assert all(".global_branch." in one or ".generator." in one for one in report.new)
    state = encoder.state_dict()
    assert set(report.imported) == set(state) - set(report.new)
    assert all(torch.equal(state[one], published[one].float()) for one in report.imported)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_one_line_changes_the_size_of_a_paper_recipe_and_its_weights(name: str, size: str) -> None:
    part = load_recipe(name, [f"image_encoder.size={size}"]).image_encoder
    assert part.swin_weights == f"timm:swin_{size}_patch4_window7_224.ms_in22k"
    known = timm.get_pretrained_cfg(part.swin_weights.removeprefix("timm:"), allow_unregistered=False)
    assert known is not None
    assert known.hf_hub_id == part.swin_weights.replace("timm:", "timm/")


def test_a_custom_size_has_no_published_weights() -> None:
    with pytest.raises(RecipeError, match=r"weights contains \{size\}, but no Swin of a custom size is published"):
        parse_recipe("image_encoder: {size: custom, weights: 'file:swin_{size}.pth'}", "mine.yaml")


def test_a_bert_is_taken_from_the_hub_with_its_shape_and_its_words(hub: HubFolder) -> None:
    captions = ("a lake beside a forest",)
    tokenizer = load_tokenizer(TextEncoderPart(), 16, captions)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=48,
    )
    torch.manual_seed(0)
    bert, files = BertModel(config).eval(), hub("somebody/small-bert")
    bert.save_pretrained(files)
    (files / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "data": {"image_size_px": 32},
            "image_encoder": {"size": "custom", "width": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
            "text_encoder": {"weights": "hf:somebody/small-bert"},
        }
    )
    read = load_tokenizer(recipe.text_encoder, 16, ())
    model = build_model(recipe, read.vocab_size).eval()
    tokens = read(captions)
    with torch.inference_mode():
        text = model.text_encoder(tokens.input_ids, tokens.attention_mask)
        found = model.fusion_encoder(text, tokens.attention_mask, None)  # type: ignore[misc]
        expected = bert(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5)
    assert {report.source for report in model.import_reports} == {"hf:somebody/small-bert"}


def test_a_swin_of_another_kind_is_refused_by_its_own_parts(tmp_path: Path) -> None:
    published = timm.create_model("swinv2_tiny_window8_256", pretrained=False).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in published.items()}, tmp_path / "v2.safetensors")
    with pytest.raises(MismatchError, match=r"has layers\.0\.blocks\.0\.attn\.\S+, which no Swin has"):
        import_swin(GswinEncoder(ImageEncoderPart(), 224), f"file:{tmp_path / 'v2.safetensors'}")


def test_an_import_is_told_in_one_line_that_names_what_is_left_over() -> None:
    some = ImportReport("timm:swin", ("a", "b"), ("c",), ("head.fc.bias", "head.fc.weight"))
    assert some.sentence() == ("timm:swin: 2 tensors imported, 1 are new, 2 unused (head.fc.bias, head.fc.weight)")
    many = ImportReport("file:x", ("a",), (), tuple("abcdef"))
    assert many.sentence() == "file:x: 1 tensors imported, 0 are new, 6 unused (a, b, c, d, and 2 more)"
