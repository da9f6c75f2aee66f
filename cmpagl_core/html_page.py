"""Self-contained HTML pages from templates: everything escaped, no external addresses (ours)."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cmpagl_core import __version__


def render_page(package: str, template: str, **content: Any) -> str:
    """Render a template of a package's `templates` folder; it can use `version` and the filter `percent`."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{value:.2f}"
    page = environment.get_template(template).render(version=__version__, **content)
    return page.encode("utf-8", "replace").decode("utf-8")
