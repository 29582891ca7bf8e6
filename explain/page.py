"""The parts of a self-contained HTML page: escaped text, tables, figures inside the page, and its style.

What comes from a file goes through `escape`; only what is already `Html` is taken as it is.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

STYLE = """
:root { --page: #ffffff; --text: #1c2024; --quiet: #5b6570; --line: #d9dde1; --panel: #f4f6f8; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --text: #e4e7ea; --quiet: #9aa5b0; --line: #343b43; --panel: #1f242a; --link: #7db8f2; }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; overflow-wrap: break-word; }
main { max-width: 1000px; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .6rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p, ul { margin: .5rem 0; max-width: 75ch; }
a { color: var(--link); }
code, pre { font: .85em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--panel); padding: .8rem; overflow-x: auto; border-radius: 6px; margin: .5rem 0; }
.quiet, .missing, figcaption { color: var(--quiet); }
.missing { font-style: italic; }
nav ul { list-style: none; padding: 0; margin: .8rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  max-width: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--panel); border-radius: 8px; padding: .6rem .8rem; }
.facts dt { color: var(--quiet); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.facts small { display: block; font-size: .78rem; font-weight: 400; color: var(--quiet); }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
thead th { color: var(--quiet); font-weight: 500; vertical-align: bottom; }
td.n, th.n { text-align: right; white-space: nowrap; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 0 1.4rem; margin: .4rem 0; }
.pairs div { display: flex; justify-content: space-between; gap: .8rem; padding: .22rem 0; font-size: .92rem;
  border-bottom: 1px solid var(--line); }
.pairs .wide { grid-column: 1 / -1; }
.pairs dt { color: var(--quiet); }
.pairs dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
table.fixed { width: 100%; table-layout: fixed; }
table.fixed th:first-child { width: 34%; }
table.fixed td, table.fixed th { overflow-wrap: anywhere; }
table.confusion td, table.confusion th { border: 1px solid var(--page); }
table.confusion td { text-align: right; min-width: 3.6rem; background: rgba(0, 114, 178, var(--share)); }
table.confusion td.right { font-weight: 700; }
tr.total td, tr.total th { font-weight: 600; }
figure { margin: .9rem 0; }
figcaption { font-size: .88rem; margin-top: .3rem; }
.paper { background: #ffffff; border-radius: 6px; padding: 6px; display: inline-block; max-width: 100%;
  color: #1c2024; }
.paper svg, .paper img { display: block; max-width: 100%; height: auto; }
.tall { max-height: 80vh; overflow: auto; display: block; }
.tall svg { max-width: none; }
.groups { display: flex; flex-wrap: wrap; gap: .9rem 1.6rem; margin: .6rem 0; }
.groups h4 { font-size: .92rem; margin: 0 0 .3rem; }
.faces { display: flex; flex-wrap: wrap; gap: .6rem; }
.faces figure { margin: 0; background: var(--panel); border-radius: 8px; padding: .45rem; width: 8.1rem; }
.faces img { width: 100%; display: block; border-radius: 4px; background: #000; }
.faces figcaption { font-size: .78rem; line-height: 1.35; overflow-wrap: anywhere; }
.faces strong { color: var(--text); }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .85rem; }
@media (max-width: 560px) {
  body { font-size: 15px; }
  main { padding: .6rem .7rem 3rem; }
  th, td { padding: .25rem .4rem; }
  .facts { grid-template-columns: repeat(2, 1fr); }
  .faces { gap: .4rem; }
  .faces figure { width: calc((100vw - 1.4rem - .8rem) / 3); }
}
@media print {
  :root { --page: #ffffff; --text: #000000; --quiet: #444444; --line: #bbbbbb; --panel: #f2f2f2; --link: #000000; }
  html { color-scheme: light; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2, h3, h4, summary { break-after: avoid; }
  figure, tr, .facts div, .pairs div { break-inside: avoid; }
  .tall { max-height: none; overflow: visible; }
  figure:has(.tall) { break-inside: auto; }
  .tall svg { max-width: 100%; height: auto; }
  .scroll { overflow: visible; }
  table { font-size: .85em; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""


LONG = 26  # letters, of a value that has a line of its own


class Html(str):
    """Text that is HTML already, which `escape` leaves as it is."""

    __slots__ = ()


class Section(NamedTuple):
    """One section of the page: its id, its title, and what is in it."""

    name: str
    title: str
    body: Html


def escape(value: object) -> Html:
    """Any value as text in HTML, also inside of quotes; Html stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """The parts one behind the other, escaped where they are not Html."""
    return Html("\n".join(escape(part) for part in parts))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """<tag …>content</tag>; `kind` is the attribute class. Content and attributes are escaped where not Html."""
    named = {"class" if name == "kind" else name: value for name, value in attributes.items()}
    written = "".join(f' {name}="{escape(value)}"' for name, value in named.items() if value is not None)
    return Html(f"<{tag}{written}>{''.join(escape(part) for part in content)}</{tag}>")


def paragraph(*content: object, kind: str | None = None) -> Html:
    """A paragraph."""
    return element("p", *content, kind=kind)


def missing(*content: object) -> Html:
    """A line that says what is not there."""
    return paragraph(*content, kind="missing")


def table(
    heads: Sequence[object], rows: Iterable[Sequence[object]], numbers: Sequence[int] = (), kind: str | None = None
) -> Html:
    """A table that scrolls sideways where the page is narrow. The first cell of each row is its head.

    numbers: columns that are aligned on the right. kind: the table's class.
    """

    def cells(tag: str, values: Sequence[object]) -> Html:
        return join(
            element("th" if not i else tag, value, kind="n" if i in numbers else None) for i, value in enumerate(values)
        )

    head = element("thead", element("tr", cells("th", heads))) if heads else ""
    body = element("tbody", join(element("tr", cells("td", row)) for row in rows))
    return element("div", element("table", head, body, kind=kind), kind="scroll")


def pairs(rows: Iterable[tuple[object, object]]) -> Html:
    """Names with their values, in as many columns as there is room for; a long value has a line of its own."""
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value), kind="wide" if len(str(value)) > LONG else None)
            for name, value in rows
        ),
        kind="pairs",
    )


def breakable(text: object) -> Html:
    """A path or a name, escaped, in which a line may end behind each / and _."""
    return Html(re.sub(r"([/_])", r"\1<wbr>", escape(text)))


def folded(title: object, *content: object) -> Html:
    """Content behind a title that opens it."""
    return element("details", element("summary", title), *content)


def figure(picture: Html, caption: object = "", kind: str = "paper") -> Html:
    """A picture on white, which its colours are made for, and what stands below."""
    below = element("figcaption", caption) if caption else ""
    return element("figure", element("div", picture, kind=kind), below)


def image(data: bytes, text: str, width: int | None = None) -> Html:
    """A PNG inside the page. text: what is said where pictures are not seen. width: in pixels of the page."""
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    size = f' width="{width}"' if width else ""
    return Html(f'<img src="{source}" alt="{escape(text)}"{size}>')


def face_image(face: np.ndarray, text: str, width: int | None = None) -> Html:
    """A face, uint8, C×H×W, inside the page: BGR, or grey; two grey ones stand side by side."""
    pixels = np.ascontiguousarray(face.transpose(1, 2, 0)) if len(face) == 3 else np.hstack(list(face))
    return image(cv2.imencode(".png", pixels)[1].tobytes(), text, width)


def png(drawn: Figure, text: str, dpi: int = 100) -> Html:
    """A Matplotlib figure as a PNG inside the page."""
    buffer = BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return image(buffer.getvalue(), text, round(drawn.get_figwidth() * 84))


def svg(drawn: Figure, name: str, text: str) -> Html:
    """A Matplotlib figure as SVG inside the page; `name` before each id keeps them apart from those of others."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", buffer.getvalue().decode())
    return inline_svg(drawing, text)


def inline_svg(drawing: str, text: str | None = None) -> Html:
    """An SVG document as an element of a page: without prolog and namespaces, which HTML knows by itself.

    text: what is said where pictures are not seen; None for a drawing that has its own.
    """
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", drawing)
    drawing = drawing.replace("xlink:href", "href")
    label = "" if text is None else f' role="img" aria-label="{escape(text)}"'
    return Html(drawing.replace("<svg", f"<svg{label}", 1).strip())


def page(title: str, head: Html, sections: Sequence[Section], foot: object) -> str:
    """The whole document, with a list of its sections. It refers to nothing outside of itself."""
    links = join(
        element("li", element("a", section.title, href=f"#{section.name}")) for section in sections
    )  # the names are ours, not from files
    body = join(element("section", element("h2", section.title), section.body, id=section.name) for section in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{element('h1', title)}\n{head}\n"
        f"{element('nav', element('ul', links), **{'aria-label': 'Contents'})}\n{body}\n"
        f"{element('footer', foot)}\n</main>\n</body>\n</html>\n"
    )
