"""The API is as it describes itself: schemathesis asks whatever the description allows, and some that it does not."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve.app import make_app
from cmpagl_core.serve.guard import Access
from cmpagl_core.serve.openapi import description
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace
from tests.conftest import FakeEncoder


@pytest.fixture(scope="module")
def schemathesis() -> Any:
    """Imported by the one worker that asks: it takes a second."""
    found = pytest.importorskip("schemathesis", reason="pip install 'cmpagl[dev]'")
    importlib.import_module("schemathesis.python.asgi")
    return found


@pytest.fixture(scope="module")
def described(
    schemathesis: Any, tiny_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any]]:
    root = tmp_path_factory.mktemp("api")
    encoder = FakeEncoder()
    index = build_index(encoder, folder_source(tiny_images), root / "index", Silent()).index
    device: Any = None
    session = Session(Workspace(root), Silent(), device)
    app = make_app(Searcher(index, lambda: encoder, Silent()), session, Access("testserver"))
    with schemathesis.python.asgi.get_client(app) as client:
        yield schemathesis.openapi.from_asgi("/api/openapi.json", app), client


OPERATIONS = [(path, method) for path, methods in description()["paths"].items() for method in methods]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_api_is_as_described(
    schemathesis: Any, described: tuple[Any, Any], path: str, method: str, mode: str
) -> None:
    schema, client = described
    operation = schema[path][method.upper()]
    asked = [
        parameter for parameter in description()["paths"][path][method]["parameters"] if parameter["in"] == "query"
    ]
    if mode == "negative" and not asked and method == "get":
        pytest.skip("nothing in it can be wrong")

    # A schema does not say that there must be a query, that weights do not cancel out, or that an index has places.
    acceptance = importlib.import_module("schemathesis.specs.openapi.checks").positive_data_acceptance

    @settings(max_examples=8, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case: Any) -> None:
        case.call_and_validate(session=client, excluded_checks=[acceptance])

    ask()
