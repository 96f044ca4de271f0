"""How the documentation is built: `./lab docs`, which makes every warning an error."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extensions"), str(HERE.parent)]

from bestiary._version import __version__  # noqa: E402

project, author, release = "Bestiary", "The Bestiary developers", __version__
copyright = "2026, The Bestiary developers"
highlight_language = "none"  # where a block of code does not name its language
extensions = ["myst_nb", "generate"]
exclude_patterns = ["_extensions"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!bestiary\.).*")]  # types of PyTorch, NumPy and the standard library

myst_enable_extensions = ["colon_fence", "deflist", "html_admonition"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds of a cell, on a machine that does other things too
nb_execution_in_temp = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # which knows tables
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Bestiary"
html_static_path = ["_static"]
html_css_files = ["bestiary.css"]
html_show_sphinx = False
html_copy_source = False
if repository := os.environ.get("GITHUB_REPOSITORY"):  # set where GitHub builds the pages
    html_theme_options = {
        "source_repository": f"https://github.com/{repository}/",
        "source_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "source_directory": "docs/",
    }
