"""Show an inspected image set on a page: a contact sheet of a few images of each class."""

import base64
import io
from importlib import resources
from typing import Final

import jinja2

from vlcp_ray import images
from vlcp_ray.inspection.inspect import Inspection
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.stages.ingest import format_skipped

_SIDE: Final = 128  # pixels of the longer side of a picture


def render(inspection: Inspection) -> str:
    """Return the page as one HTML file without references to others."""
    text = resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"printable": printable}
    pictures: dict[str, list[tuple[str, str]]] = {}
    for one in inspection.examples:
        pictures.setdefault(one.key, []).append((one.source, one.problem or picture(one.content)))
    skipped = format_skipped(inspection.skipped) if inspection.skipped else ""
    return environment.from_string(text).render(set=inspection, pictures=pictures, skipped=skipped)


def picture(content: bytes) -> str:
    """Return a small picture as a URI of its bytes."""
    image = images.decode(content)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
