"""Pages rendered from templates: everything escaped, no address outside the page."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cmpagl_core import __version__


def render(template: str, **content: Any) -> str:
    """A page as text."""
    environment = Environment(
        loader=PackageLoader("cmpagl_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{value:.2f}"
    page = environment.get_template(template).render(version=__version__, **content)
    return page.encode("utf-8", "replace").decode("utf-8")
