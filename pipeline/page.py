"""What the self-contained HTML pages share: templates, pictures as data, a palette for figures.

A page opens offline and prints: pictures are data URIs, nothing is fetched, nothing runs. Templates are Jinja2's with
autoescape, so that text is text whatever somebody's store says. Colours are told apart with any colour vision and, by
markers, without colour.
"""

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

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
    environment = Environment(loader=loader, **options)
    environment.globals["data_uri"] = data_uri
    return environment


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


# ---- to go when both pages are templates ----

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1080px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.6em; line-height: 1.25; margin-bottom: .3em; overflow-wrap: anywhere; }
h2 { margin-top: 2em; border-top: 1px solid #ccc; padding-top: .8em; } h3 { margin-top: 1.6em; }
table { border-collapse: collapse; margin: .8em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .8em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: bottom; }
td { white-space: nowrap; } th { background: #f3f3f3; }
th:first-child, td:first-child, .text { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1.2em; } dt { font-weight: 600; } dd { margin: 0;
       overflow-wrap: anywhere; }
code { background: #f3f3f3; padding: .1em .3em; }
.loud { border: 3px solid #D55E00; background: #fdf0e8; padding: .6em 1em; font-weight: 600; }
.notes { color: #333; margin: .5em 0; } .wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
figure { margin: 1em 0; } figcaption { color: #333; font-size: .93em; } details { margin: .8em 0; }
summary { cursor: pointer; }
@media print { body { margin: 0; max-width: none; font-size: 10.5px; } figure, tr { break-inside: avoid; }
       h2, h3, summary { break-after: avoid; } .wide { overflow: visible; } td { white-space: normal; }
       .loud { print-color-adjust: exact; } }
"""


def document(title: str, body: Sequence[str], css: str = "") -> str:
    """A whole page. title: text; body: HTML; css: what this page's look adds."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}{css}</style></head>\n'
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def definitions(facts: Mapping[str, str]) -> str:
    """Facts, text by text; those that are empty are left out."""
    rows = [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text]
    return f"<dl>{''.join(rows)}</dl>"


def table(names: Sequence[str], rows: Sequence[Sequence[object]], text: Collection[str] = ()) -> str:
    """Rows of values, escaped; numbers to the right, the first column and those named in ``text`` to the left."""
    classes = [' class="text"' if name in text else "" for name in names]
    head = "".join(f"<th{c}>{escape(name)}</th>" for c, name in zip(classes, names, strict=True))
    body = ""
    for row in rows:
        cells = "".join(f"<td{c}>{escape(str(value))}</td>" for c, value in zip(classes, row, strict=True))
        body += f"<tr>{cells}</tr>\n"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(data: bytes, kind: str, alternative: str, attributes: str = "") -> str:
    """An image of a media type (image/…) as part of the page."""
    text = base64.b64encode(data).decode()
    return f'<img src="data:{kind};base64,{text}" alt="{escape(alternative)}"{attributes}>'


def figure(svgs: Sequence[str], caption: str) -> str:
    """One or more pictures, beside each other where they fit, with one caption."""
    images = "\n".join(picture(svg.encode(), "image/svg+xml", caption) for svg in svgs)
    return f"<figure>{images}\n<figcaption>{escape(caption)}</figcaption></figure>"
