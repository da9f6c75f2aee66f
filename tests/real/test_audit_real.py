"""What `cmpagl audit` finds in the public data sets, as docs/data.md has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmpagl_core.datasets.audit import AuditRequest, audit
from cmpagl_core.datasets.findings import Finding
from cmpagl_core.progress import Silent
from cmpagl_core.workspace import Workspace
from tests.real.test_prepare_real import prepare_real

pytestmark = pytest.mark.real


def found_in(data: str, against: str | None = None, workspace: Path = Path()) -> dict[tuple[str, str], Finding]:
    found = audit(AuditRequest(data, against), Workspace(workspace), Silent())
    return {(one.check, one.where): one for one in found.findings}


def test_rsitmd_has_twenty_blank_captions(real_data: Path) -> None:
    found = found_in(str(real_data / "annotations/dataset_rsitmd.json"))["blank captions", "train"]
    assert (found.found, found.of) == (20, 21_455)
    stems = {Path(item.image_id).stem for item in found.items}
    assert stems == {"mountain_2378", "railwaystation_3254", "storagetanks_4367", "viaduct_4635"}


def test_rsicds_test_captions_are_in_rsitmds_train_split(real_data: Path) -> None:
    rsicd, rsitmd = (str(real_data / f"annotations/dataset_{name}.json") for name in ("rsicd", "rsitmd"))
    found = found_in(rsicd, rsitmd)
    leak = found["captions also in train", "dataset_rsicd test / dataset_rsitmd train"]
    assert (leak.found, leak.of, leak.leak) == (1_185, 5_465, True)
    back = found["captions also in train", "dataset_rsitmd test / dataset_rsicd train"]
    assert (back.found, back.of) == (251, 2_260)


def test_ucm_has_one_image_twice_and_none_across_splits(real_data: Path, tmp_path: Path) -> None:
    prepare_real("ucm", real_data, tmp_path)
    found = found_in("ucm", workspace=tmp_path)
    twins = {key: one for key, one in found.items() if key[0] in ("identical images", "near-duplicate images")}
    assert list(twins) == [("identical images", "train")]
    (item,) = twins["identical images", "train"].items
    assert (item.image_id, item.other) == ("102", "103")
    assert sum(found["odd sizes", split].found for split in ("train", "val", "test")) == 44
    assert (found["captions also in train", "test"].found, found["captions also in train", "val"].found) == (576, 664)


@pytest.mark.slow
def test_rsicd_has_seven_pairs_one_of_them_across_splits(real_data: Path, tmp_path: Path) -> None:
    prepare_real("rsicd", real_data, tmp_path, skip_missing=True)
    found = found_in("rsicd", workspace=tmp_path)
    pairs = {
        where: sorted((item.image_id, item.other) for item in one.items)
        for (check, where), one in found.items()
        if check == "near-duplicate images"
    }
    assert pairs == {
        "train": [
            ("industrial_222", "industrial_302"),
            ("park_121", "park_181"),
            ("port_183", "port_248"),
            ("railwaystation_221", "railwaystation_234"),
            ("stadium_206", "stadium_210"),
        ],
        "val / train": [("stadium_95", "stadium_100")],
    }
    assert [item.other for item in found["identical images", "train"].items] == ["industrial_205"]
    json.dumps([one.document() for one in found.values()])
