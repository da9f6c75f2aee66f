"""`export`, `index` and `retrieve` on a tiny workspace: answers, formats, and every way to ask wrongly."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.datasets.same_caption import caption_key
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.imagery.images import open_image, to_pixel_values
from cmpagl_core.locks import hold
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.kept_params import Chooser, write_params
from cmpagl_core.ranking.rerank import RerankParams
from cmpagl_core.runs import open_run, save_run
from cmpagl_core.search.index import open_index

Ask = Callable[..., Result]


@pytest.fixture
def workspace(tiny_run: Path, tmp_path: Path) -> Path:
    """A workspace of one's own with the tiny data set and run."""
    root = tmp_path / "work space"
    shutil.copytree(tiny_run.parent, root / "runs")
    shutil.copytree(tiny_run.parent.parent / "data", root / "data")
    return root


@pytest.fixture
def ask(cmpagl: Ask, workspace: Path) -> Ask:
    def call(*arguments: str | Path) -> Result:
        return cmpagl("--workspace", workspace, *arguments)

    return call


@pytest.fixture(scope="session")
def indexed_workspace(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose data set is indexed already; tests only read it."""
    from typer.testing import CliRunner

    from cmpagl_cli.app import app

    root = tmp_path_factory.mktemp("indexed")
    shutil.copytree(tiny_run.parent, root / "runs")
    shutil.copytree(tiny_run.parent.parent / "data", root / "data")
    done = CliRunner().invoke(app, ["--workspace", str(root), "index"])
    assert done.exit_code == 0, done.stderr
    return root


@pytest.fixture
def find(cmpagl: Ask, indexed_workspace: Path) -> Ask:
    def call(*arguments: str | Path) -> Result:
        return cmpagl("--workspace", indexed_workspace, "retrieve", *arguments)

    return call


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_readers_need_no_lock_and_writers_are_told_who_has_it(
    cmpagl: Ask, find: Ask, indexed_workspace: Path, tiny_images: Path
) -> None:
    with ExitStack() as stack:
        for root in sorted(indexed_workspace.glob("*/*/")):
            stack.enter_context(hold(root))
        assert len(answer(find("a square of kind 2", "-k", "3", "--format", "json"))) == 3
        image = next(tiny_images.rglob("*.jpg"))
        assert len(answer(find("--image", image, "-k", "3", "--format", "json"))) == 3
        shown = cmpagl("--workspace", indexed_workspace, "evaluate", "--rerank", "none")
        assert shown.exit_code == 0, shown.stderr
        refused = cmpagl("--workspace", indexed_workspace, "index")
    assert refused.exit_code == 1
    assert f"indexes/tiny is being written by process {os.getpid()} on " in refused.stderr
    assert "wait until it has ended, or choose another --name" in " ".join(refused.stderr.split())


def test_the_first_question_makes_an_index_of_the_whole_data_set_once(ask: Ask, workspace: Path) -> None:
    first = ask("retrieve", "a square of kind 2", "--format", "json")
    hits = answer(first)
    assert "there is no index yet" in first.stderr
    assert (workspace / "indexes" / "tiny" / "index.json").is_file()
    assert [hit["rank"] for hit in hits] == list(range(1, 11))
    assert list(hits[0]) == ["rank", "image_id", "path", "score", "captions"]
    assert all(Path(hit["path"]).is_file() and len(hit["captions"]) == 2 for hit in hits)
    second = ask("retrieve", "a square of kind 2", "--format", "json")
    assert answer(second) == hits
    assert second.stderr == ""


def test_every_format_says_the_same(find: Ask) -> None:
    hits = answer(find("a bright square", "-k", "3", "--format", "json"))
    lines = [json.loads(line) for line in find("a bright square", "-k", "3", "--format", "jsonl").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(find("a bright square", "-k", "3", "--format", "csv").stdout)))
    assert lines == hits
    assert [(row["image_id"], float(row["score"])) for row in rows] == [(h["image_id"], h["score"]) for h in hits]
    table = find("a bright square", "-k", "3").stdout
    assert all(hit["image_id"] in table for hit in hits)


def test_k_is_clamped_to_the_gallery_and_at_least_one(find: Ask) -> None:
    assert len(answer(find("square", "-k", "500", "--format", "json"))) == 12
    assert find("square", "-k", "0").exit_code == 2


@pytest.mark.parametrize("text", ["square " * 10_000, "\N{AIRPLANE}\N{GRINNING FACE}", "; ' \" \\ \x00", "a\tb\nc"])
def test_any_text_can_be_asked(find: Ask, text: str) -> None:
    assert len(answer(find(text, "--format", "json"))) == 10


def test_a_long_or_unknown_query_is_said(find: Ask) -> None:
    assert "reads the first 16 tokens" in find("square " * 10_000).stderr
    assert "no word of the query is known" in find("\N{AIRPLANE}").stderr
    assert find("square " * 10_000, "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "no query is given"),
        ([""], 2, "the query is blank"),
        (["  \n"], 2, "the query is blank"),
        (["square", "--image", "x.jpg"], 2, "a text and --image are two queries"),
        (["square", "--queries", "x.txt"], 2, "a text and --queries are two queries"),
        (["--queries", "x.txt"], 3, "x.txt does not exist"),
        (["--queries", "/dev/null", "--rerank", "itm"], 3, "has no queries"),
        (["square", "--to", "captions"], 2, "--to is a date; for captions call `cmpagl caption IMAGE`"),
        (["square", "--to", "31.5.2024"], 2, "'31.5.2024' is not a date"),
        (["square", "--near", "1,2"], 2, "--near and --within belong together"),
        (["square", "--bbox", "1,2,3"], 2, "--bbox '1,2,3' is not 4 numbers"),
        (["square", "--bbox", "0,0,1,1"], 3, "has no image with coordinates"),
        (["square", "--from", "2024"], 3, "has no image with a date"),
        (["square", "--like", "scene_05"], 2, "a text and --like are two queries"),
        (["--like", "nothing"], 3, "has no image 'nothing'"),
        (["--minus", "square"], 2, "no query is given"),
        (["square", "--plus", "0:blue"], 2, "the weight in '0:blue'"),
        (["square", "--minus", "square"], 2, "the parts of the query cancel each other out"),
        (["--queries", "x.txt", "--plus", "a"], 2, "--plus and --minus are for one query"),
        (["--image", "x.jpg", "--rerank", "itm"], 2, "--rerank itm compares a text with images"),
        (["--image", "none.jpg"], 3, "image none.jpg does not exist"),
        (["square", "--index", "none"], 3, "no index.json under none"),
        (["square", "--features", "none.safetensors"], 3, "none.safetensors does not exist"),
        (["square", "--index", "tiny", "--features", "x"], 2, "both choose a gallery"),
        (["square", "--run", "none"], 3, "no run.json under none"),
    ],
)
def test_a_wrong_question_gets_one_sentence_and_its_code(find: Ask, arguments: list[str], code: int, said: str) -> None:
    result = find(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_run_the_way_out_is_said(cmpagl: Ask) -> None:
    result = cmpagl("retrieve", "airport near sea")
    assert result.exit_code == 3
    assert "train one with `cmpagl train`" in result.stderr


def test_an_image_finds_itself_first_and_captions_of_its_kind(
    cmpagl: Ask, find: Ask, tiny_images: Path, indexed_workspace: Path
) -> None:
    image = tiny_images / "north" / "scene_05.jpg"
    hits = answer(find("--image", image, "--format", "json"))
    assert hits[0]["image_id"] == "scene_05"
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-4)
    captions = answer(cmpagl("--workspace", indexed_workspace, "caption", image, "-k", "4", "--format", "json"))
    assert list(captions[0]) == ["rank", "score", "caption", "image_ids"]
    assert len({caption["caption"] for caption in captions}) == 4
    scores = [caption["score"] for caption in captions]
    assert scores == sorted(scores, reverse=True)
    table = cmpagl("--workspace", indexed_workspace, "caption", image).stdout
    assert captions[0]["caption"] in table


def test_the_fusion_half_looks_again_at_the_best(find: Ask, indexed_workspace: Path) -> None:
    loaded = open_run(indexed_workspace / "runs" / "tiny").load()
    plain = {hit["image_id"]: hit for hit in answer(find("a bright square", "-k", "12", "--format", "json"))}
    tokens = loaded.tokenizer(["a bright square"])
    expected = {}
    with torch.inference_mode():
        for image_id, hit in plain.items():
            values = to_pixel_values(open_image(Path(hit["path"])), loaded.recipe.data.image_size_px)[None]
            image = loaded.model.encode_images(values).tokens
            fused = loaded.model.fuse((tokens.input_ids, tokens.attention_mask), image)
            expected[image_id] = hit["score"] + float(loaded.model.itm_logits(fused).softmax(dim=1)[0, 1])
    hits = answer(find("a bright square", "--rerank", "itm", "-k", "5", "--format", "json"))
    assert [hit["image_id"] for hit in hits] == sorted(expected, key=lambda name: -expected[name])[:5]
    for hit in hits:
        assert hit["score"] == pytest.approx(expected[hit["image_id"]], abs=2e-3)


def test_many_queries_get_the_answers_of_each(find: Ask, tmp_path: Path) -> None:
    texts = ["a bright square", "field 3", "a square of kind 2"]
    (tmp_path / "q.txt").write_text("\n".join(texts))
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    alone = [{"query": text, "hits": answer(find(text, "-k", "3", "--format", "json"))} for text in texts]
    assert answer(find("--queries", "q.txt", "-k", "3", "--format", "json")) == alone
    lines = find("--queries", "q.jsonl", "-k", "3", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == alone
    rows = list(csv.DictReader(io.StringIO(find("--queries", "q.txt", "-k", "3", "--format", "csv").stdout)))
    assert [(row["query"], row["rank"], row["image_id"]) for row in rows] == [
        (one["query"], str(hit["rank"]), hit["image_id"]) for one in alone for hit in one["hits"]
    ]
    table = find("--queries", "q.txt", "-k", "3").stdout
    assert all(text in table for text in texts)
    (tmp_path / "odd.txt").write_text("square " * 10_000 + "\n\N{AIRPLANE}\n" + "a square\n" * 100, encoding="utf-8")
    odd = find("--queries", "odd.txt").stderr
    assert "1 of 102 queries are too long" in odd
    assert odd.count("no word of 1 of 102 queries is known") == 1
    many = find("--queries", "q.txt", "--quiet")
    assert (many.exit_code, many.stderr) == (0, "")


def test_a_broken_query_image_is_refused(find: Ask, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    result = find("--image", "broken.jpg")
    assert result.exit_code == 3
    assert "broken.jpg" in result.stderr


def test_a_gallery_page_is_written_and_opened(
    find: Ask, indexed_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    result = find("a square", "--gallery", "sub/found.html", "--open", "--format", "json")
    assert len(answer(result)) == 10
    page = tmp_path / "sub" / "found.html"
    assert page.read_text().count("<article>") == 10
    assert opened == [page.as_uri()]
    assert "gallery: sub/found.html" in result.stderr
    assert find("a square", "--open").exit_code == 0
    assert opened[1] == (indexed_workspace / "gallery.html").as_uri()


def test_a_folder_is_indexed_and_becomes_the_newest_gallery(ask: Ask, tiny_images: Path) -> None:
    made = answer(ask("index", tiny_images, "--name", "archive", "--format", "json"))[0]
    assert (made["name"], made["images"], made["encoded"], made["left_out"]) == ("archive", 12, 12, 0)
    for more, encoded in (((), 0), (("--tta", "d4"), 12), ((), 0)):
        again = answer(ask("index", tiny_images, "--name", "archive", *more, "--format", "json"))[0]
        assert again["encoded"] == encoded, more
    hits = answer(ask("retrieve", "square", "--format", "json"))
    assert {hit["image_id"] for hit in hits} <= {f"{path.parent.name}/{path.name}" for path in tiny_images.glob("*/*")}
    assert all(hit["captions"] == [] for hit in hits)
    table = ask("retrieve", "square").stdout
    assert hits[0]["image_id"] in table


def test_a_query_image_is_seen_as_the_index_saw_its_own(ask: Ask, tiny_images: Path) -> None:
    assert ask("index", tiny_images, "--name", "turned", "--tta", "d4").exit_code == 0
    best = answer(ask("retrieve", "--image", tiny_images / "north" / "scene_05.jpg", "--format", "json"))[0]
    assert best["image_id"] == "north/scene_05.jpg"
    assert best["score"] == pytest.approx(1.0, abs=1e-6)


def test_an_index_takes_its_name_from_the_folder(ask: Ask, tiny_images: Path, tmp_path: Path) -> None:
    odd = tmp_path / "Aerial photos (2024)"
    shutil.copytree(tiny_images / "north", odd)
    assert answer(ask("index", odd, "--format", "json"))[0]["name"] == "Aerial-photos-2024"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["none"], 3, "none does not exist; pass folders"),
        (["empty"], 3, "there is no image in"),
        (["broken"], 3, "none of the 1 images"),
        (["empty", "--data", "tiny"], 2, "PATH and --data both give images"),
        (["--name", "../x"], 2, "is not a valid name"),
        (["--data", "none"], 3, "no manifest.json under none"),
    ],
)
def test_what_cannot_be_indexed_is_refused(
    ask: Ask, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no image")
    result = ask("index", *arguments)
    assert result.exit_code == code
    assert said in result.stderr


def test_an_export_is_a_feature_set_that_can_be_asked(ask: Ask, tmp_path: Path) -> None:
    made = answer(ask("export", "--split", "all", "--out", "all.safetensors", "--format", "json"))[0]
    assert (made["images"], made["captions"], made["dim"], made["split"]) == (12, 24, 32, "all")
    assert load_feature_set(tmp_path / "all.safetensors").info.dataset == "tiny"
    found = answer(ask("retrieve", "a square of kind 2", "--features", "all.safetensors", "--format", "json"))
    indexed = answer(ask("retrieve", "a square of kind 2", "--format", "json"))
    assert [hit["image_id"] for hit in found] == [hit["image_id"] for hit in indexed]


def test_a_text_query_on_features_needs_no_torch(ask: Ask, workspace: Path, tmp_path: Path) -> None:
    assert ask("export", "--split", "all", "--out", "all.safetensors").exit_code == 0
    question = ("retrieve", "a square", "--features", str(tmp_path / "all.safetensors"))
    done = asked_apart(workspace, *question, loaded_of=("torch", "transformers", "timm", "pandas", "PIL"))
    assert len(json.loads(done.stdout)) == 10
    assert done.stderr.splitlines()[-1] == "[]"


def test_an_export_is_named_after_run_data_and_split(ask: Ask, tmp_path: Path) -> None:
    assert ask("export").exit_code == 0
    assert (tmp_path / "tiny-tiny-test.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "ViT-B-32"], 2, "no published model is called 'ViT-B-32'"),
        (["--model", "open_clip:x", "--run", "tiny"], 2, "both name a model"),
        (["--data", "none"], 3, "no manifest.json under none"),
        (["--run", "none"], 3, "no run.json under none"),
    ],
)
def test_what_cannot_be_exported_is_refused(ask: Ask, arguments: list[str], code: int, said: str) -> None:
    result = ask("export", *arguments)
    assert result.exit_code == code
    assert said in result.stderr


def other_run(workspace: Path) -> None:
    """A run of other weights, newer than everything else."""
    run = open_run(workspace / "runs" / "tiny")
    loaded = run.load()
    state = {name: tensor + 0.01 for name, tensor in loaded.model.state_dict().items() if tensor.is_floating_point()}
    save_run(
        workspace / "runs" / "other",
        run.recipe,
        run.info,
        loaded.model.state_dict() | state,
        loaded.tokenizer.to_json(),
        run.seen,
    )


def test_a_gallery_is_never_asked_with_another_model(ask: Ask, workspace: Path, tiny_images: Path) -> None:
    assert ask("index").exit_code == 0
    assert ask("export", "--out", "f.safetensors").exit_code == 0
    other_run(workspace)
    for arguments in (["square"], ["--image", tiny_images / "north" / "scene_05.jpg"]):
        refused = ask("retrieve", *arguments, "--run", "other", "--index", "tiny")
        assert refused.exit_code == 5
        assert "has features of another model" in refused.stderr
    newer = ask("retrieve", "square")
    assert newer.exit_code == 0
    assert "index tiny was made with run tiny; run other is newer" in newer.stderr
    assert ask("retrieve", "square", "--features", "f.safetensors").exit_code == 0  # the run that made it is found
    refused = ask("retrieve", "square", "--features", "f.safetensors", "--run", "other")
    assert refused.exit_code == 5
    shutil.rmtree(workspace / "runs" / "tiny")
    assert ask("retrieve", "square", "--features", "f.safetensors").exit_code == 5
    assert ask("retrieve", "square", "--index", "tiny").exit_code == 0  # the index has the text half itself


def test_an_image_that_was_deleted_is_still_found_and_marked(ask: Ask, tiny_images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(tiny_images, folder)
    assert ask("index", folder).exit_code == 0
    (folder / "north" / "scene_05.jpg").unlink()
    result = ask("retrieve", "square", "-k", "12", "--gallery", "g.html", "--format", "json")
    assert "north/scene_05.jpg" in [hit["image_id"] for hit in answer(result)]
    assert (tmp_path / "g.html").read_text().count(">missing<") == 1


def test_many_questions_start_no_torch_either(indexed_workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("a square\n" * 20)
    done = asked_apart(indexed_workspace, "retrieve", "--queries", str(tmp_path / "q.txt"), loaded_of=("torch",))
    assert [len(one["hits"]) for one in json.loads(done.stdout)] == [10] * 20
    assert done.stderr.strip() == "[]"


def test_a_question_to_an_index_starts_neither_torch_nor_pandas(indexed_workspace: Path) -> None:
    heavy = ("torch", "transformers", "timm", "pandas", "yaml", "PIL", "rasterio", "jinja2", "rich", "filelock")
    done = asked_apart(indexed_workspace, "retrieve", "a square", loaded_of=heavy)
    assert len(json.loads(done.stdout)) == 10
    assert done.stderr.strip() == "[]"


def test_an_image_query_needs_no_torch_once_the_encoder_is_exported(
    ask: Ask, workspace: Path, tiny_images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    image = str(tiny_images / "north" / "scene_05.jpg")
    assert ask("index").exit_code == 0
    before = answer(ask("retrieve", "--image", image, "--format", "json"))
    written = answer(ask("export", "--onnx", "--out", "tiny.onnx", "--format", "json"))[0]
    assert written["largest_difference"] < 1e-4
    done = asked_apart(workspace, "retrieve", "--image", image, loaded_of=("torch", "transformers", "timm", "rasterio"))
    found = json.loads(done.stdout)
    assert [hit["image_id"] for hit in found] == [hit["image_id"] for hit in before]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in before], abs=1e-4)
    assert done.stderr.splitlines()[-1] == "[]"
    refused = ask("export", "--onnx", "--scores")
    assert (refused.exit_code, "--onnx writes a run's image encoder" in refused.stderr) == (2, True)


def test_an_index_with_nothing_new_waits_for_no_model(indexed_workspace: Path) -> None:
    done = asked_apart(indexed_workspace, "index", loaded_of=("transformers", "timm"))
    assert json.loads(done.stdout)[0]["encoded"] == 0
    assert done.stderr.splitlines()[-1] == "[]"


def asked_apart(workspace: Path, *arguments: str, loaded_of: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose last line on stderr lists those of some modules that it has loaded."""
    code = f"""
import sys
from cmpagl_cli.app import app
try:
    app(["--workspace", {str(workspace)!r}, *{arguments!r}, "--format", "json"])
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {loaded_of!r} if name in sys.modules], file=sys.stderr)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_parts_are_added_by_weight_and_taken_away(find: Ask, tiny_images: Path) -> None:
    plain = answer(find("a bright square", "-k", "12", "--format", "json"))
    same = answer(find("a bright square", "--plus", "3:a bright square", "-k", "12", "--format", "json"))
    assert [hit["image_id"] for hit in same] == [hit["image_id"] for hit in plain]
    image = tiny_images / "north" / "scene_05.jpg"
    towards = answer(find("a bright square", "--plus", f"50:{image}", "--format", "json"))
    assert towards[0]["image_id"] == "scene_05"
    away = answer(find("a bright square", "--minus", f"50:{image}", "-k", "12", "--format", "json"))
    assert away[-1]["image_id"] == "scene_05"
    alone = answer(find("--plus", str(image), "--format", "json"))
    assert alone == answer(find("--image", image, "--format", "json"))


def test_more_like_an_image_of_the_index_needs_no_model(find: Ask) -> None:
    by_id = answer(find("--like", "scene_05", "--format", "json"))
    assert by_id[0]["image_id"] == "scene_05"
    assert by_id[0]["score"] == pytest.approx(1.0, abs=1e-6)
    assert answer(find("--like", "5", "--format", "json")) == by_id


def test_filters_and_scores_narrow_what_is_found(find: Ask, tmp_path: Path) -> None:
    every = answer(find("square", "-k", "12", "--format", "json"))
    some = answer(find("square", "--scene", "scene_0[0-3]*", "-k", "12", "--format", "json"))
    assert [hit["image_id"] for hit in some] == [
        hit["image_id"] for hit in every if hit["image_id"] in ("scene_00", "scene_01", "scene_02", "scene_03")
    ]
    said = find("square", "--path", "*/none/*")
    assert said.exit_code == 0
    assert "the filters leave 0 images" in said.stderr
    floor = every[4]["score"]
    assert len(answer(find("square", "--min-score", str(floor), "-k", "12", "--format", "json"))) == 5
    paths = find("square", "-k", "3", "--format", "paths", "--copy-to", "copies", "--crops", "crops").stdout.split()
    assert paths == [hit["path"] for hit in every[:3]]
    assert len(list((tmp_path / "copies").iterdir())) == len(list((tmp_path / "crops").glob("*.png"))) == 3
    geo = json.loads(find("square", "-k", "2", "--format", "geojson").stdout)
    assert [feature["geometry"] for feature in geo["features"]] == [None, None]


def test_hits_are_written_to_files_as_other_programs_take_them(find: Ask, tmp_path: Path) -> None:
    import geopandas

    hits = answer(find("square", "-k", "3", "--format", "json"))
    for format in ("json", "html", "gpkg"):
        done = find("square", "-k", "3", "--format", format, "--out", f"hits.{format}")
        assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert json.loads((tmp_path / "hits.json").read_text()) == hits
    assert (tmp_path / "hits.html").read_text().count("<article>") == 3
    table = geopandas.read_file(tmp_path / "hits.gpkg", engine="pyogrio")
    assert list(table["image_id"]) == [hit["image_id"] for hit in hits]
    assert list(table["rank"]) == [1, 2, 3]
    assert find("square", "-k", "3", "--format", "html").stdout.count("<article>") == 3


@pytest.mark.parametrize("rerank", ["csls", "dual-softmax"])
def test_a_bank_of_training_captions_stands_in_for_other_queries(
    find: Ask, indexed_workspace: Path, tmp_path: Path, rerank: str
) -> None:
    run = open_run(indexed_workspace / "runs" / "tiny")
    write_params(run.root, Chooser.of_run(run), {"cosine": RerankParams(dual_softmax=20.0)})
    try:
        first = find("a bright square", "--rerank", rerank, "-k", "12", "--format", "json")
        hits = answer(first)
        assert "training captions, once" in first.stderr
        again = find("a bright square", "--rerank", rerank, "-k", "12", "--format", "json")
        assert answer(again) == hits
        assert "once" not in again.stderr
    finally:
        (run.root / "rerank.json").unlink()
        shutil.rmtree(indexed_workspace / "cache" / "offsets")
    index = open_index(indexed_workspace / "indexes" / "tiny")
    train, _ = selection_splits(open_prepared(indexed_workspace / "data" / "tiny"), run.recipe.data.selection)
    texts = sorted({caption_key(text): text for text in train.captions}.values())
    bank = CmpaglEncoder(run, Silent(), torch.device("cpu")).encode_texts(texts)
    cosines = index.image_features.astype(np.float64) @ bank.astype(np.float64).T
    if rerank == "csls":
        offsets = np.sort(cosines, axis=1)[:, -10:].mean(axis=1) / 2
    else:
        offsets = np.log(np.exp(20 * cosines).sum(axis=1)) / 40
    plain = answer(find("a bright square", "-k", "12", "--format", "json"))
    expected = {hit["image_id"]: hit["score"] - offsets[index.image_ids[:].index(hit["image_id"])] for hit in plain}
    assert {hit["image_id"]: hit["score"] for hit in hits} == pytest.approx(expected, abs=1e-5)
    assert hits == sorted(hits, key=lambda hit: -hit["score"])


def test_dual_softmax_without_a_temperature_says_who_chooses_one(find: Ask) -> None:
    said = find("a square", "--rerank", "dual-softmax")
    assert said.exit_code == 2
    assert "cmpagl tune" in said.stderr


def test_a_terminal_shows_links_and_thumbnails(indexed_workspace: Path) -> None:
    shown = _on_a_terminal("--workspace", indexed_workspace, "retrieve", "a square", "-k", "2", "--thumbnails")
    assert "\x1b]8;" in shown
    assert "file:///" in shown
    assert "\N{LOWER HALF BLOCK}" in shown or "\N{UPPER HALF BLOCK}" in shown


def _on_a_terminal(*arguments: str | Path) -> str:
    """What a command prints on a terminal of 100 columns that answers no question."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "cmpagl_cli", *(str(one) for one in arguments)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        os.close(theirs)
        read = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            read += part
        os.close(ours)
    assert process.returncode == 0
    return read.decode()
