"""Render and write self-contained HTML pages: templates, pictures as data, a palette for figures.

A page opens offline and prints: pictures are data URIs, nothing is fetched, and nothing runs but what sorts the tables
of a leaderboard. Templates are Jinja2's with
autoescape, so that text is text whatever somebody's store says. Colours are told apart with any colour vision and, by
markers, without colour.
"""

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .console import plain
from .files import whole_file

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"  # page.html, the base of every page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#882255")
# Okabe and Ito's, less yellow, which does not print; grey and wine added.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
STYLE = {  # of matplotlib
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "mlemiss",  # the same results draw the same bytes
    "text.parse_math": False,  # names are text, whatever stands in them
}


def render(templates: Path, name: str, **facts: object) -> str:
    """Render the template ``name`` of a folder; it may extend `page.html`. A fact that is absent is an error."""
    return _environment(templates).get_template(name).render(**facts)


@cache
def _environment(templates: Path) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([templates, TEMPLATES])
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, finalize=_printable_text, **options)
    environment.globals["data_uri"] = data_uri
    return environment


def _printable_text(value: object) -> object:
    """Return text without marks that turn the text around it, line breaks kept; what a template made stays."""
    return plain(value) if type(value) is str else value


def write_page(page: str, out: Path) -> int:
    """Write a page, whole or not at all, and return its bytes. Lone surrogates become question marks."""
    with whole_file(out) as file:
        return file.write(page.encode("utf-8", errors="replace"))


def data_uri(data: bytes | str, kind: str) -> str:
    """Return a picture of a media type (`image/jpeg`, `image/svg+xml`) as the text of an `src`."""
    data = data.encode() if isinstance(data, str) else data
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def svg(figure: "Figure", crop: str | None = "tight") -> str:
    """Return a figure of matplotlib as SVG, the same bytes each time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches=crop, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode()
