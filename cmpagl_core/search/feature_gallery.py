"""An exported feature set as a gallery, so that its images can be searched directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmpagl_core.encoders.feature_set import FeatureSet, unique_texts
from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.search.index import GalleryIndex, IndexInfo, places


def index_of_features(path: Path, features: FeatureSet) -> GalleryIndex:
    """The gallery of a feature set exported to `path`."""
    by_image = np.argsort(features.text_image, kind="stable")
    captions, caption_text = unique_texts(features.captions)
    _, first = np.unique(caption_text, return_index=True)
    info = features.info
    return GalleryIndex(
        root=path,
        image_features=features.image_features,
        image_ids=TextTable.of(features.image_ids),
        paths=TextTable.of(features.paths),
        windows=None,
        captions=TextTable.of(captions),
        text_features=features.text_features[first],
        caption_image=features.text_image[by_image],
        caption_text=caption_text[by_image],
        tie_order=places(features.image_ids),
        stamps=None,
        info=IndexInfo(
            name=path.stem,
            kind="features",
            source=str(path),
            dataset=info.dataset,
            manifest_sha256=info.manifest_sha256,
            model=info.model,
            model_kind="",
            model_source="",
            model_sha256=info.model_sha256,
            preprocessing=info.preprocessing,
            precision=info.precision,
            templates=info.templates,
        ),
    )
