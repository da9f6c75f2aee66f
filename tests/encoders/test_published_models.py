"""Models of others by name: built with the activation and preprocessing that they were trained with, or asked for."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmpagl_core.encoders import published_models
from cmpagl_core.encoders.open_clip import ClipOptions, OpenClipEncoder, open_clip_encoder
from cmpagl_core.encoders.published_models import PUBLISHED_MODELS, PublishedModel, published_file, recognised
from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.files import sha256_file
from cmpagl_core.progress import Silent
from tests.conftest import TINY_CLIP, Told

CPU = torch.device("cpu")
ENTRY = PublishedModel(
    name="ours-b99",
    architecture="tiny-openai",
    activation="quickgelu",
    file="ours.pt",
    licence="MIT",
    source="https://example.org/ours",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny architecture that exists with both activations, as OpenAI's do, and random weights `ours.pt` of it."""
    folder = tmp_path_factory.mktemp("published")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, on import
        import open_clip
    for name, more in (("tiny-openai", {}), ("tiny-openai-quickgelu", {"quick_gelu": True})):
        (folder / f"{name}.json").write_text(json.dumps({**TINY_CLIP, **more}))
        open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-openai").state_dict(), folder / "ours.pt")
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    for module in ("published_models", "open_clip"):
        monkeypatch.setattr(f"cmpagl_core.encoders.{module}.PUBLISHED_MODELS", (ENTRY,))
    return ENTRY


def built(spec: str, **options: Any) -> OpenClipEncoder:
    return open_clip_encoder(spec, Silent(), CPU, ClipOptions(**options))


def texts_of(encoder: OpenClipEncoder) -> Any:
    return encoder.encode_texts(["a pier", "two planes"])


def test_a_published_model_has_its_own_activation_however_it_is_named(known: PublishedModel, folder: Path) -> None:
    expected = texts_of(built(f"open_clip:tiny-openai-quickgelu:{folder / 'ours.pt'}"))
    other = texts_of(built(f"open_clip:tiny-openai:{folder / 'ours.pt'}", activation="gelu"))
    assert np.abs(expected - other).max() > 1e-4
    told = Told()
    by_file = open_clip_encoder(f"open_clip:tiny-openai:{folder / 'ours.pt'}", told, CPU)
    assert told.messages[0] == "ours.pt is ours-b99: built with quickgelu"
    for encoder in (built(f"ours-b99:{folder / 'ours.pt'}"), built("ours-b99", models=folder), by_file):
        np.testing.assert_array_equal(texts_of(encoder), expected)
    again = built(f"open_clip:{by_file.origin.source}", as_indexed=True)
    np.testing.assert_array_equal(texts_of(again), expected)


def test_a_known_file_is_recognised_by_its_content_under_any_name(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    renamed = tmp_path / "weights.pt"
    renamed.write_bytes((folder / "ours.pt").read_bytes())
    entry = PublishedModel(**{**vars(ENTRY), "sha256": sha256_file(renamed)})
    monkeypatch.setattr(published_models, "PUBLISHED_MODELS", (entry,))
    assert recognised("tiny-openai", renamed, sha256_file(renamed)) == entry
    assert built(f"open_clip:tiny-openai:{renamed}").name.startswith("open_clip:tiny-openai-quickgelu:")


def test_an_unknown_file_of_openais_shape_asks_for_its_activation(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.pt"
    mine.write_bytes((folder / "ours.pt").read_bytes())
    spec = f"open_clip:tiny-openai:{mine}"
    with pytest.raises(UsageError, match=r"the activation of mine\.pt is unknown.*--activation quickgelu .*or gelu"):
        built(spec)
    quick, plain = (built(spec, activation=choice) for choice in ("quickgelu", "gelu"))
    assert np.abs(texts_of(quick) - texts_of(plain)).max() > 1e-4
    np.testing.assert_array_equal(texts_of(built(f"open_clip:{plain.origin.source}", as_indexed=True)), texts_of(plain))
    with pytest.raises(UsageError, match="has QuickGELU, but --activation is gelu"):
        built(f"open_clip:tiny-openai-quickgelu:{mine}", activation="gelu")


def test_an_activation_is_asked_for_only_where_there_is_a_choice(tiny_clip: Path) -> None:
    spec = f"open_clip:{tiny_clip / 'tiny-clip.json'}:{tiny_clip / 'plain.pt'}"
    built(spec)
    with pytest.raises(UsageError, match="--activation is for OpenAI's architectures"):
        built(spec, activation="gelu")
    with pytest.raises(UsageError, match="--activation is for files"):
        built("open_clip:ViT-B-32:openai", activation="gelu")


def test_a_model_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    for model in PUBLISHED_MODELS:
        with pytest.raises(DataError, match=rf"the weights of {model.name} are not on this machine") as raised:
            built(model.name, models=tmp_path)
        assert model.source in str(raised.value)
        assert ("pass --download" in str(raised.value)) == bool(model.hub)
    with pytest.raises(DataError, match=r"no weights at .*none\.pt; `cmpagl models show remoteclip-b32` says where"):
        built(f"remoteclip-b32:{tmp_path / 'none.pt'}")
    with pytest.raises(UsageError, match="no published model is called 'remoteclip-b99'; known are remoteclip-b32"):
        built("remoteclip-b99")


def test_a_file_is_fetched_when_asked_for_and_never_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(repository: str, path: str) -> str:
        asked.append((repository, path))
        return str(tmp_path / "here.pt")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    model = published_models.published_model("georsclip-b32")
    with pytest.raises(DataError):
        published_file(model, tmp_path, download=False)
    assert asked == []
    assert published_file(model, tmp_path, download=True) == tmp_path / "here.pt"
    assert asked == [("Zilun/GeoRSCLIP", "ckpt/RS5M_ViT-B-32.pt")]


def test_the_table_names_architectures_that_open_clip_has() -> None:
    import open_clip

    assert {model.spec for model in PUBLISHED_MODELS} <= set(open_clip.list_models())
    assert len({model.name for model in PUBLISHED_MODELS}) == len(PUBLISHED_MODELS)
    assert all(model.licence and model.source.startswith("https://") and model.note for model in PUBLISHED_MODELS)


def test_a_file_of_siglip_gets_siglips_preprocessing() -> None:
    import open_clip

    from cmpagl_core.encoders.open_clip import _preprocessing

    found = _preprocessing(open_clip, "ViT-B-16-SigLIP")
    assert found == {
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "image_interpolation": "bicubic",
        "image_resize_mode": "squash",
    }
    assert _preprocessing(open_clip, "RN50")["image_resize_mode"] == "shortest"


def test_what_a_checkpoint_is_not_is_said_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    spec = "open_clip:tiny-openai-quickgelu:"
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/__torch__.py", "script/version"):
            archive.writestr(name, "3")
    with pytest.raises(MismatchError, match=r"is a TorchScript archive.*save its state_dict"):
        built(f"{spec}{tmp_path / 'script.pt'}")
    torch.save(
        {"visual.conv1.weight": torch.zeros(1024, 3, 14, 14), "visual.class_embedding": torch.zeros(1024)},
        tmp_path / "large.pt",
    )
    with pytest.raises(MismatchError, match=r"it contains a ViT of width 1024, patch 14 and 0 layers\); name its own"):
        built(f"{spec}{tmp_path / 'large.pt'}")


def test_a_trainers_file_with_numbers_of_numpy_is_read(folder: Path, tmp_path: Path) -> None:
    state = torch.load(folder / "ours.pt", weights_only=True)
    wrapped = {
        "epoch": np.int64(3),
        "best": np.float64(0.5),
        "state_dict": {f"module.{name}": value for name, value in state.items()},
    }
    torch.save(wrapped, tmp_path / "trainer.pt")
    plain, trainers = (
        built(f"open_clip:tiny-openai-quickgelu:{file}") for file in (folder / "ours.pt", tmp_path / "trainer.pt")
    )
    assert plain.fingerprint == trainers.fingerprint


def test_nothing_asks_the_hub_unless_download_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    seen: list[bool] = []
    make = open_clip.get_tokenizer

    def watched(name: str) -> Any:
        seen.append(constants.HF_HUB_OFFLINE)
        return make(name)

    monkeypatch.setattr(open_clip, "get_tokenizer", watched)
    for download in (False, True):
        built(f"open_clip:tiny-openai-quickgelu:{folder / 'ours.pt'}", download=download)
    assert seen == [True, False]
    assert constants.HF_HUB_OFFLINE is False
