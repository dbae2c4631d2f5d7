"""Sphinx: `make docs` builds out/docs, offline, with warnings as errors."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import ivlens  # noqa: E402

# Sphinx reads documents below this folder only. Notebooks are kept with their outputs and are never run here.
for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
    copy = HERE / "notebooks" / notebook.name
    if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
        shutil.copyfile(notebook, copy)

# Files of the repository that are pages here.
PAGES = {"benches/RESULTS.md": "/benchmarks.md", "LOG.md": "/log.md"}


def with_links(app: object, name: str, source: list[str]) -> None:
    """Let links to files of the repository lead to the pages made of them; without a page, only the name is left."""
    place = (HERE / name).parent

    def linked(found: re.Match[str]) -> str:
        text, target, anchor = found.groups("")
        path = (place / target).resolve()
        if path.is_relative_to(HERE) or not path.is_relative_to(HERE.parent):
            return found[0]
        page = PAGES.get(path.relative_to(HERE.parent).as_posix())
        return f"[{text}]({page}{anchor})" if page else f"`{text}`"

    source[0] = re.sub(r"(?<!!)\[([^\]\[]+)\]\(([\w./-]+?)(#[\w-]*)?\)", linked, source[0])


def with_bridge(app: object, what: str, name: str, of: object, options: object, arguments: Any, returned: Any) -> Any:
    """Let signatures say `TransformerBridge`; its import is slow, and until then `nn.Module` stands in its place."""
    return tuple(text and re.sub(r"\bModule\b", "TransformerBridge", text) for text in (arguments, returned))


def setup(app: Any) -> None:
    """Connect the functions above to Sphinx, which calls this at its start."""
    app.connect("source-read", with_links)
    app.connect("autodoc-process-signature", with_bridge)


project = "ivlens"
author = "the ivlens authors"
copyright = author
version = release = ivlens.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # .rst: from autosummary
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

html_theme = "furo"
html_title = "ivlens"
html_static_path = ["_static"]
html_css_files = ["ivlens.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b62a8", "color-brand-content": "#0b62a8"},
    "dark_css_variables": {"color-brand-primary": "#62b0f0", "color-brand-content": "#62b0f0"},
}
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The package writes docstrings in Markdown's manner: a word in single backquotes is code.
default_role = "code"
maximum_signature_line_length = 60  # longer signatures have a line for each parameter
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_generate = True
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "notes_style")]
python_use_unqualified_type_names = True
