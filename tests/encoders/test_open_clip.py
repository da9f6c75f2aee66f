"""Any open_clip model or local checkpoint gives a feature set; a wrong one is refused with a sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.encoders.open_clip import ClipOptions, encoder_features, open_clip_encoder
from cmpagl_core.errors import CmpaglError, DataError, MismatchError, UsageError
from cmpagl_core.imagery.images import open_image
from cmpagl_core.progress import Silent

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def open_clip() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, on import
        import open_clip

    return open_clip


@pytest.fixture(scope="module")
def config(tiny_clip: Path) -> Path:
    return tiny_clip / "tiny-clip.json"


@pytest.fixture(scope="module")
def published(open_clip: Any, tiny_clip: Path) -> Any:
    """The tiny model as open_clip builds it; beside its description a trainer's file of it."""
    open_clip.add_model_config(tiny_clip / "tiny-clip.json")
    state = torch.load(tiny_clip / "plain.pt", weights_only=True)
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(wrapped, tiny_clip / "trainer.pt")
    model = open_clip.create_model("tiny-clip").eval()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def split(tiny_prepared: Path) -> DataSplit:
    return open_prepared(tiny_prepared).split("test")


@pytest.mark.parametrize("checkpoint", ["plain.pt", "trainer.pt"])
def test_the_features_are_those_of_open_clip_itself(
    open_clip: Any, published: Any, config: Path, split: DataSplit, checkpoint: str
) -> None:
    loaded = open_clip_encoder(f"open_clip:{config}:{config.parent / checkpoint}", Silent(), CPU)
    found = encoder_features(loaded, split, Silent(), "m" * 64)
    prepare = open_clip.image_transform(32, is_train=False)
    with torch.inference_mode():
        images = published.encode_image(torch.stack([prepare(open_image(path)) for path in split.paths]), True)
        texts = published.encode_text(open_clip.get_tokenizer("tiny-clip")(list(split.captions)), True)
    np.testing.assert_allclose(found.image_features, images.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.text_features, texts.numpy(), atol=1e-5)
    assert found.info.model == f"open_clip:tiny-clip:{checkpoint}"
    assert found.info.split_sha256 == split.sha256
    assert "mean" in found.info.preprocessing


def test_one_model_has_one_hash_however_it_is_stored(published: Any, config: Path) -> None:
    one, other = (open_clip_encoder(f"open_clip:{config}:{config.parent / name}", Silent(), CPU) for name in
                  ("plain.pt", "trainer.pt"))  # fmt: skip
    assert one.fingerprint == other.fingerprint


def test_a_checkpoint_of_another_model_is_refused(published: Any, config: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(MismatchError, match=r"other\.pt does not contain the weights of open_clip's tiny-clip"):
        open_clip_encoder(f"open_clip:{config}:{tmp_path / 'other.pt'}", Silent(), CPU)


class Harmful:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_a_checkpoint_with_code_in_it_is_never_run(
    published: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(CmpaglError, match=r"harmful\.pt"):
        open_clip_encoder(f"open_clip:{config}:{tmp_path / 'harmful.pt'}", Silent(), CPU)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("clip:ViT-B-32", UsageError, "is not open_clip:NAME"),
        ("open_clip:", UsageError, "is not open_clip:NAME"),
        (
            "open_clip:ViT-B-32",
            UsageError,
            "has no checkpoint; add a file, .*, or a pretrained tag of open_clip",
        ),
        ("open_clip:ViT-Z-99", UsageError, "open_clip has no model 'ViT-Z-99'"),
        (
            "open_clip:ViT-B-32:none.pt",
            DataError,
            "checkpoint none.pt is neither a file nor a pretrained tag of open_clip",
        ),
    ],
)
def test_a_model_that_is_not_there_is_refused(open_clip: Any, spec: str, kind: type[CmpaglError], said: str) -> None:
    with pytest.raises(kind, match=said):
        open_clip_encoder(spec, Silent(), CPU)


def test_a_description_that_is_none_is_refused(open_clip: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UsageError, match="does not describe an open_clip model"):
        open_clip_encoder(f"open_clip:{tmp_path / 'a.json'}", Silent(), CPU)
    (tmp_path / "b.json").write_text("[")
    with pytest.raises(UsageError, match="is not a JSON description of an open_clip model"):
        open_clip_encoder(f"open_clip:{tmp_path / 'b.json'}", Silent(), CPU)


def test_without_open_clip_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UsageError, match=r"pip install 'cmpagl\[clip\]'"):
        open_clip_encoder("open_clip:ViT-B-32", Silent(), CPU)


@pytest.mark.parametrize("options", [ClipOptions(), ClipOptions(as_indexed=True)])
def test_nothing_is_fetched_unasked(open_clip: Any, options: ClipOptions) -> None:
    with pytest.raises(DataError, match="openai for ViT-B-32 is not on this machine and --download was not passed"):
        open_clip_encoder("open_clip:ViT-B-32:openai", Silent(), CPU, options)
