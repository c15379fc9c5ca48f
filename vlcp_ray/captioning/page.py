"""Show images with their captions on a page."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2

from vlcp_ray.inspection.page import picture
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.stages.pair import Caption
from vlcp_ray.store.uris import public


def render(source: str, how: Caption, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the page as one HTML file without references to others.

    Args:
        rows: of `describe.preview`.
    """
    text = resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["printable"] = printable
    shown = [{**row, "picture": "" if row["reason"] else picture(row["image"])} for row in rows]
    return environment.from_string(text).render(source=public(source), model=public(how.model), how=how, rows=shown)
