"""One self-contained HTML page of tables, pictures and animations from xT to x0.

It opens offline. Only a `Gallery` refers to files beside the page. An animation begins at its first
frame; without JavaScript it shows its last. On a phone each row of a table becomes a list. Callers
decide what the values mean and where the page is written.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image

from colddiff.runtime.errors import UserError


class Table(NamedTuple):
    """Rows of text. The first column is aligned left, the columns of numbers right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Picture(NamedTuple):
    """An image, uint8 `[H, W, 3]`, shown at its own size or scaled down to the page's width."""

    title: str
    image: np.ndarray
    note: str = ""


class Gallery(NamedTuple):
    """Image files beside the page, each with a caption; a click opens `link`.

    `files` holds (file, link, caption) for each image, paths relative to the page. Unlike the other
    sections it is not part of the page: the files have to stay beside it.
    """

    title: str
    files: Sequence[tuple[str, str, str]]
    note: str = ""


class Walk(NamedTuple):
    """An animation from xT to x0: frame i, uint8 `[H, W, 3]`, shows severity `times[i]`.

    `beside` holds pictures of the frames' size, with captions, that stand still beside it.
    """

    title: str
    times: Sequence[int]
    frames: Sequence[np.ndarray]
    note: str = ""
    beside: Sequence[tuple[str, np.ndarray]] = ()


Section = Table | Picture | Gallery | Walk


def render(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Return the page's HTML, to be written in UTF-8. All texts are escaped.

    Raises:
      UserError: a section has an unknown type; an array is not uint8 `[H, W, 3]`; a row has too few
        or too many cells; or a `Walk` has frames of different shapes, times that do not decrease,
        or not one time for each frame.
    """
    body = "\n".join(_section(i, section) for i, section in enumerate(sections))
    style = _STYLE + "".join(_true_pixels(*place) for place in sorted(_places(sections)))
    # The policy makes the browser refuse all requests and all other scripts.
    images = "data: 'self' file:" if any(isinstance(s, Gallery) for s in sections) else "data:"
    policy = f"default-src 'none'; img-src {images}; style-src {_hash(style)}; "
    policy += f"script-src {_hash(_SCRIPT)}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{_note(subtitle)}
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _section(i: int, section: Section) -> str:
    match section:
        case Table():
            content = _table(i, section)
        case Picture():
            content = _image(section.title, section.image, section.title)
        case Gallery():
            content = _gallery(section)
        case Walk():
            content = _walk(i, section)
        case _:
            kinds = "a Table, a Picture, a Gallery or a Walk"
            raise UserError(f"section {i} of a page must be {kinds}; got {type(section).__name__}")
    heading = f'<h2 id="h{i}">{escape(section.title)}</h2>'
    return f"<section>\n{heading}\n{content}\n{_note(section.note)}\n</section>"


def _table(i: int, table: Table) -> str:
    for row in table.rows:
        if not row or len(row) != len(table.header):
            raise UserError(
                f"each row of table {table.title!r} needs the header's {len(table.header)} cells; "
                f"got {list(row)}"
            )
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.header)
    body = "\n".join(_row(row, table.header) for row in table.rows)
    # The arrow keys scroll the box only if it can have the focus.
    return f"""<div class="box" tabindex="0" role="region" aria-labelledby="h{i}"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _row(texts: Sequence[str], header: Sequence[str]) -> str:
    first = f'<th scope="row">{escape(texts[0])}</th>'
    rest = "".join(
        f'<td data-label="{escape(label)}">{escape(text)}</td>'
        for label, text in zip(header[1:], texts[1:], strict=True)
    )
    return f"<tr>{first}{rest}</tr>"


def _gallery(gallery: Gallery) -> str:
    figures = (
        f'<figure><a href="{_url(link)}"><img src="{_url(file)}" alt="{escape(caption)}" '
        f'loading="lazy"></a><figcaption>{escape(caption)}</figcaption></figure>'
        for file, link, caption in gallery.files
    )
    return '<div class="gallery">\n' + "\n".join(figures) + "\n</div>"


def _url(path: str) -> str:
    """Return a relative path as the value of an HTML attribute."""
    return escape(quote(path))


def _walk(i: int, walk: Walk) -> str:
    times, last = [int(t) for t in walk.times], len(walk.frames) - 1
    if last < 0 or len(times) != len(walk.frames):
        raise UserError(
            f"walk {walk.title!r} needs one or more frames, and one time for each; got "
            f"{len(walk.frames)} frames, {len(times)} times"
        )
    if any(t <= later for t, later in pairwise(times)):
        raise UserError(f"times of walk {walk.title!r} must decrease; got {times}")
    shapes = {np.shape(frame) for frame in walk.frames}
    if len(shapes) > 1:
        raise UserError(f"frames of walk {walk.title!r} must have one shape; got {shapes}")
    images = "\n".join(
        _image(walk.title, frame, f"{walk.title}, t = {t}", f'data-t="{t}"', hidden=j < last)
        for j, (t, frame) in enumerate(zip(times, walk.frames, strict=True))
    )
    still = "\n".join(
        f"<figure>{_image(walk.title, image, text)}<figcaption>{escape(text)}</figcaption></figure>"
        for text, image in walk.beside
    )
    return f"""<div class="walk">
<div class="frames">
<figure>{images}</figure>
{still}
</div>
<div class="controls" hidden>
<button type="button" aria-describedby="h{i}">Play</button>
<input type="range" min="0" max="{last}" value="0" aria-label="{escape(walk.title)}">
<output aria-live="off"></output>
</div>
</div>"""


def _image(title: str, image: np.ndarray, alt: str, more: str = "", *, hidden: bool = False) -> str:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"{title!r} needs pictures of uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}"
        )
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    data = base64.b64encode(png.getvalue()).decode()
    height, width, _ = image.shape
    # Synchronous decoding, so that no blank shows between two frames.
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}" '
        f'height="{height}" decoding="sync" {more}{" hidden" if hidden else ""}>'
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _places(sections: Sequence[Section]) -> set[tuple[str, int, int]]:
    """Return the images' CSS selectors, their widths, and the widths that the page needs for them.

    The pictures beside a walk take as much room as its frames.
    """
    places = set()
    for section in sections:
        if isinstance(section, Picture):
            width = np.shape(section.image)[1]
            places.add(("section > img", width, width))
        elif isinstance(section, Walk):
            width = np.shape(section.frames[0])[1]
            places.add((".walk img", width, width + len(section.beside) * (width + _GAP)))
    return places


def _true_pixels(selector: str, width: int, needed: int) -> str:
    """Return CSS that shows pixels with sharp edges where images of this width fit into the page.

    Images that are scaled down are smoothed instead, so that letters in them stay legible.
    """
    rule = f'{selector}[width="{width}"] {{ image-rendering: pixelated }}'
    return f"@container (min-width: {needed}px) {{ {rule} }}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_GAP = 16  # pixels between the pictures of a walk; the style's 1rem

_STYLE = """
:root { --page: #fff; --ink: #1b1e23; --soft: #5c636d; --line: #d9dce1; --accent: #0b62b0 }
@media (prefers-color-scheme: dark) {
  :root { --page: #15171a; --ink: #e6e8eb; --soft: #a0a7b1; --line: #363b42; --accent: #6db3f2 }
}
* { box-sizing: border-box }
body { margin: 0; padding: 2.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; text-wrap: pretty; -webkit-text-size-adjust: 100% }
main { max-width: 68rem; margin: auto; container-type: inline-size }
h1 { margin: 0; font-size: 1.75rem; font-weight: 650; line-height: 1.25 }
h2 { margin: 3rem 0 .75rem; font-size: 1.2rem; font-weight: 600; line-height: 1.3 }
.note { max-width: 42rem; margin: .6rem 0 0; color: var(--soft); font-size: .9375rem }
img { display: block; max-width: 100%; height: auto; border-radius: 4px }
[hidden] { display: none !important }
.box { overflow-x: auto }
table { border-spacing: 0; font-size: .9375rem }
th, td { padding: .5rem 0 .5rem clamp(1rem, 3.3cqw, 2rem); border-bottom: 1px solid var(--line);
  text-align: right; overflow-wrap: normal; white-space: nowrap }
th:first-child { position: sticky; left: 0; padding: .5rem .5rem .5rem 0; text-align: left;
  background: var(--page); font-weight: 400; white-space: normal; min-width: 8rem }
thead th, thead th:first-child { border-bottom-color: var(--soft); font-weight: 600;
  vertical-align: bottom; white-space: normal; max-width: 10rem }
@container (max-width: 32rem) {
  thead { display: none }
  table, tbody { display: block }
  tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line) }
  th:first-child { display: block; position: static; padding: 0; border: 0; font-weight: 600 }
  td { display: flex; justify-content: space-between; gap: 1.5rem; padding: .1rem 0; border: 0 }
  td::before { content: attr(data-label); color: var(--soft); text-align: left;
    white-space: normal }
}
.frames { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, max-content);
  gap: 1rem; justify-content: start }
@container (max-width: 32rem) {
  .frames { grid-auto-flow: row; grid-template-columns: 1fr 1fr }
  figure:first-child { grid-column: 1 / -1 }
}
.gallery { display: grid; gap: 1.5rem 1rem; align-items: end;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)) }
figure { margin: 0 }
figcaption { color: var(--soft); font-size: .9375rem }
.controls { display: flex; align-items: center; gap: .75rem; max-width: 36rem; margin-top: .5rem }
input { flex: 1; min-width: 4rem; height: 2.75rem; margin: 0; accent-color: var(--accent);
  cursor: pointer }
button { width: 4.75rem; height: 2.75rem; border: 1px solid var(--soft); border-radius: 6px;
  background: none; color: inherit; font: inherit; font-size: .9375rem; cursor: pointer }
output { min-width: 4.5rem; white-space: nowrap }
"""

_SCRIPT = """
"use strict";
for (const walk of document.querySelectorAll(".walk")) {
  const frames = [...walk.querySelectorAll("img[data-t]")];
  const [button, slider, time] = walk.querySelectorAll("button, input, output");
  let timer = 0;
  const show = () => {
    frames.forEach((frame, i) => { frame.hidden = i !== slider.valueAsNumber; });
    time.value = "t = " + frames[slider.valueAsNumber].dataset.t;
    slider.setAttribute("aria-valuetext", time.value);
  };
  const pause = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  };
  const step = () => {
    slider.stepUp();
    show();
    if (slider.value === slider.max) pause();
  };
  button.addEventListener("click", () => {
    if (timer) return pause();
    if (slider.value === slider.max) slider.value = 0;
    show();
    button.textContent = "Pause";
    timer = setInterval(step, Math.min(400, Math.max(40, 4000 / frames.length)));
  });
  slider.addEventListener("input", () => { pause(); show(); });
  walk.querySelector(".controls").hidden = false;
  show();  // a browser may have kept the slider's place
}
"""
