"""Pages of the site that are made of the repository's other files, for MkDocs (`mkdocs.yml`).

    index.md, contributing.md   README.md and CONTRIBUTING.md
    generate_digits.md          the notebook with its outputs
    api/*.md                    the docstrings of each package of colddiff, and of the configs

Links to these files become links to their pages. Other files that a page links to are copied.
"""

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent
_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "docs/generate_digits.ipynb": "generate_digits.md",
}
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")


def on_config(config: MkDocsConfig) -> None:
    """Add the pages of docstrings to the navigation."""
    pages = [{name: f"api/{name}.md"} for name in (*_packages(), "configs")]
    config.nav.append({"API": pages})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are not in docs/, and the files that pages link to."""

    def add(name: str, content: str | bytes) -> None:
        files.append(File.generated(config, name, content=content))

    for path in ("README.md", "CONTRIBUTING.md"):
        add(_PAGES[path], (_ROOT / path).read_text())
    for name, content in _notebook(_ROOT / "docs" / "generate_digits.ipynb"):
        add(name, content)
    for package in _packages():
        add(f"api/{package}.md", f"::: colddiff.{package}")
    add("api/configs.md", "\n".join(["# configs", *map(_config, _configs())]))
    for page in files.documentation_pages():
        for path, _ in _LINK.findall(page.content_string):
            path = _in_repository(path, page)
            if (_ROOT / path).is_file() and files.get_file_from_path(_in_site(path)[0]) is None:
                files.append(File.generated(config, path, abs_src_path=str(_ROOT / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the links to files of the repository by links to their pages."""

    def replace(match: re.Match) -> str:
        path = _in_repository(match[1], page.file)
        if not (_ROOT / path).is_file():
            return match[0]
        source, anchor = _in_site(path)
        source = posixpath.relpath(source, posixpath.dirname(page.file.src_uri) or ".")
        return source + (match[2] or anchor)

    return _LINK.sub(replace, markdown)


def _packages() -> list[str]:
    """Return the names of colddiff's packages and modules."""
    paths = (_ROOT / "colddiff").iterdir()
    return sorted(p.stem for p in paths if p.name[0] not in "_." and not p.is_symlink())  # configs


def _configs() -> list[str]:
    """Return the names of the configs, `default` first."""
    names = (p.stem for p in (_ROOT / "configs").glob("[!_]*.py"))
    return sorted(names, key=lambda name: (name != "default", name))


def _config(name: str) -> str:
    """Return Markdown for a config's docstring and source."""
    return f"""
::: configs.{name}
    options:
      heading_level: 2
      show_if_no_docstring: true
"""


def _in_repository(path: str, file: File) -> str:
    """Return where a link of a page leads in the repository."""
    folder = "" if file.src_uri in ("index.md", "contributing.md") else "docs"
    return posixpath.normpath(posixpath.join(folder, path))


def _in_site(path: str) -> tuple[str, str]:
    """Return the source of the site's page or file for a file of the repository, and an anchor."""
    if path.endswith(".py") and path.startswith(("colddiff/", "configs/")):
        module = path[:-3].replace("/", ".").removesuffix(".__init__")
        package, name, *_ = module.split(".")
        return f"api/{name if package == 'colddiff' else package}.md", f"#{module}"
    return _PAGES.get(path, path.removeprefix("docs/")), ""


def _notebook(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield the names and contents of the pictures in a notebook, and of its page."""
    parts, count = [], 0
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            if png := output.get("data", {}).get("image/png"):
                count += 1
                yield f"{path.stem}_{count}.png", base64.b64decode("".join(png))
                parts.append(f"![output {count}]({path.stem}_{count}.png)")
    yield f"{path.stem}.md", "\n\n".join(parts)
