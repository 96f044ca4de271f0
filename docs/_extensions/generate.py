"""Writes the pages that come from the code, and refuses public names that say nothing, before Sphinx reads any page."""

from logging import getLogger
from pathlib import Path
from typing import Any

import api
import catalogue
import commands
from docutils import nodes
from source import ROOT, Package
from sphinx import addnodes
from sphinx.util import logging

log = logging.getLogger(__name__)


def order() -> tuple[str, ...]:
    """The rooms of the package, as the test of imports lists them."""
    import ast

    tree = ast.parse((ROOT / "tests" / "test_order.py").read_text())
    found = next(n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ORDER")
    return eval(compile(ast.Expression(found.value), "ORDER", "eval"))


def generate(app: Any) -> None:
    """Write everything below `generated/`."""
    out = Path(app.srcdir) / "generated"
    getLogger("bestiary").setLevel("WARNING")  # which backend computes what is no news here
    package = Package()
    for name in package.undocumented() if app.config.bestiary_undocumented else ():
        log.warning("%s is public and has no docstring", name, type="bestiary", subtype="undocumented")
    api.write(package, out / "api", order())
    commands.write(out)
    catalogue.write(package, out)
    for stale in set(out.rglob("*.md")) - api.WRITTEN:
        stale.unlink()


def look_up_exactly(app: Any, doctree: nodes.document) -> None:
    """Names in signatures are those that they say, not others that end alike."""
    del app
    for reference in doctree.findall(addnodes.pending_xref):
        if reference.get("refspecific") is False:
            del reference["refspecific"]


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("bestiary_undocumented", default=True, rebuild="env")
    app.connect("builder-inited", generate)
    app.connect("doctree-read", look_up_exactly)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
