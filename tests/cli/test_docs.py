"""The documents say what the code does: generated pages are current, every command and field has its words."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def generate() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.mark.parametrize(
    ("page", "maker"), [("cli.md", "cli_page"), ("recipe.md", "recipe_page"), ("benchmarks.md", "benchmarks_page")]
)
def test_the_generated_pages_are_current(generate: dict[str, Any], page: str, maker: str) -> None:
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == generate[maker](), "run `make docs`"


def test_the_licence_of_every_dependency_is_listed() -> None:
    project = runpy.run_path(str(ROOT / "docs" / "licences.py"))["PROJECT"]
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in ("dev", "bench")}
    needed = [Requirement(text) for texts in (project["dependencies"], *extras.values()) for text in texts]
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \|", page, re.M))
    others = {canonicalize_name(one.name) for one in needed} - {project["name"]}  # `offline` names the extra `fast`
    assert others - listed.keys() == set(), "run `make licences`"


def test_every_recipe_field_says_what_it_means(generate: dict[str, Any]) -> None:
    silent = [path for path, meaning in generate["fields"](Recipe) if not meaning]
    assert silent == []


def readme_commands() -> list[str]:
    """Lines of the README's code blocks that call cmpagl, without their remarks."""
    text = README.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()]
    lines += re.findall(r"^    (\S.*)$", text, re.M)
    commands = [line.strip().removeprefix("$ ").partition(" #")[0].rstrip() for line in lines]
    return [line for line in commands if line.startswith("cmpagl ")]


def test_the_readme_calls_only_commands_and_options_that_exist(generate: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    shared = {"--workspace", "--device", "--threads", "--quiet", "--debug", "--help"}
    assert len(readme_commands()) >= 4
    for line in readme_commands():
        words = shlex.split(line)
        heading = next((" ".join(words[:n]) for n in (3, 2, 1) if f"## {' '.join(words[:n])}\n" in page), None)
        assert heading not in (None, "cmpagl") or words[1].startswith("--"), line
        section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
        options = {word.partition("=")[0] for word in words if word.startswith("--")} - shared
        assert [option for option in options if not re.search(rf"{option}\b", section)] == [], line


def test_every_recipe_named_in_the_readme_loads() -> None:
    named = [line.split()[2] for line in readme_commands() if line.startswith("cmpagl train ")]
    assert named
    assert all(load_recipe(name).data.dataset for name in named)


def test_every_command_has_its_section(generate: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    import typer

    from cmpagl_cli.app import app

    for words in generate["command_lines"](typer.main.get_command(app)):
        assert f"## {' '.join(('cmpagl', *words))}\n" in page


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_links_of_the_documents_lead_somewhere() -> None:
    for page, target, _ in local_links():
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_links_to_headings_find_them() -> None:
    linked = [(page, target, anchor) for page, target, anchor in local_links() if anchor]
    assert len(linked) >= 4
    for page, target, anchor in linked:
        place = page.parent / target if target else page
        assert anchor in anchors(place), f"{page.name} links to {target}#{anchor}"


def local_links() -> list[tuple[Path, str, str]]:
    """Page, file ("" for the page itself) and anchor of every link inside the repository."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [
        (page, *match)
        for page in pages
        for match in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8"))
    ]
    return [link for link in links if not link[1].startswith(("http://", "https://", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_changelog_says_everything_once_under_a_heading() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    starts = [line[:48] for line in lines]
    assert [start for start in set(starts) if starts.count(start) > 1] == []
    assert text.count("\n### Added\n") == text.count("\n### Fixed\n") == text.count("\n## ") == 1
