"""The pages of mixers and tasks: a table of each kind, a page for each family, everything from their docstrings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api import put
from prose import escaped, linker, markdown
from source import PACKAGE, Module, Package

WIDTH, TIME = 128, 1024  # where states are measured


def write(package: Package, out: Path) -> None:
    """Write the tables and the pages of families."""
    for kind, describe in (("mixers", mixer), ("tasks", task)):
        entries = [describe(package, name) for name in names(kind)]
        families: dict[str, list[dict[str, Any]]] = {}
        for entry in sorted(entries, key=lambda e: (e["family"], e["year"], e["name"])):
            families.setdefault(entry["family"], []).append(entry)
        for family, members in families.items():
            put(out / kind / f"{slug(family)}.md", family_page(kind, family, members))
        put(out / kind / "index.md", index(kind, families))


def names(kind: str) -> list[str]:
    return sorted(file.stem for file in (PACKAGE / kind).glob("[!_]*.py"))


def slug(text: str) -> str:
    return text.replace(" ", "-")


COLUMNS = {
    "mixers": ("mixer", "family", "year", f"state at {TIME:,}", "weights", "what it is"),
    "tasks": ("task", "family", "year", "scored", "chance", "what it is"),
}
NOTES = {
    "mixers": f"States are numbers kept after {TIME:,} tokens at width {WIDTH}, measured; weights are at that width.",
    "tasks": "Scored is how many positions of how many are asked on average; chance is the accuracy of the best single "
    "answer.",
}


def index(kind: str, families: dict[str, list[dict[str, Any]]]) -> str:
    """The table of a kind."""
    rows = [index_row(kind, family, member) for family, members in families.items() for member in members]
    pages = "\n".join(slug(family) for family in families)
    head = f"| {' | '.join(COLUMNS[kind])} |\n|{len(COLUMNS[kind]) * '---|'}"
    return f"""# All {kind}

{len(rows)} {kind} in {len(families)} families, from their docstrings.
{NOTES[kind]}

{head}
{chr(10).join(rows)}

```{{toctree}}
:hidden:

{pages}
```
"""


def index_row(kind: str, family: str, member: dict[str, Any]) -> str:
    name = f"[`{member['name']}`](#{kind}-{member['name']})"
    cells = [name, f"[{family}]({slug(family)}.md)", member["year"], member["size"], member["share"]]
    return f"| {' | '.join([*cells, cell(member['line'])])} |"


def family_page(kind: str, family: str, members: list[dict[str, Any]]) -> str:
    parts = "\n\n".join(member["text"] for member in members)
    return f"# {kind.capitalize()}: {family}\n\n{parts}\n"


def entry(package: Package, kind: str, name: str) -> dict[str, Any]:
    """What mixers and tasks have in common."""
    from bestiary.spec import locate

    module = Module(PACKAGE / kind / f"{name}.py")
    built = locate(kind, name)
    line = module.doc.splitlines()[0]
    year = re.search(r"(19|20)\d\d", module.doc)
    link = linker(package, module)
    return {
        "name": name,
        "family": built.family or "others",
        "year": year[0] if year else "",
        "line": re.sub(r"\s+", " ", module.doc.split("\n\n")[0]).strip() if kind == "tasks" else line,
        "module": module,
        "class": built,
        "head": f"({kind}-{name})=\n## {name}",
        "doc": markdown(module.doc, link, equations=kind == "mixers"),
        "link": link,
    }


def mixer(package: Package, name: str) -> dict[str, Any]:
    import torch

    from bestiary import memory, parse

    found = entry(package, "mixers", name)
    (spec,) = parse("mixers", name)
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in spec.build(WIDTH).parameters())
    state = memory(lambda: spec.build(WIDTH), time=TIME, dim=WIDTH)
    facts = f"At width {WIDTH}: {weights:,} weights; after {TIME:,} tokens, a state of {state.numbers:,} numbers, "
    facts += f"{state.bytes:,} bytes."
    formula = class_doc(found, equations=True)
    text = [found["head"], found["doc"], formula, table_of_options("mixers", name), facts]
    return found | {"size": f"{state.numbers:,}", "share": f"{weights:,}", "text": "\n\n".join(filter(None, text))}


def class_doc(found: dict[str, Any], *, equations: bool = False) -> str:
    import inspect

    doc = inspect.getdoc(found["class"]) or ""
    first, _, rest = doc.partition("\n\n")
    if equations and "=" in first:
        from equations import row

        first = f'<div class="equation"><div class="equation-row">{row(spread(first))}</div></div>'
        return "In one line, as its class says:\n\n" + first + ("\n\n" + markdown(rest, found["link"]) if rest else "")
    return markdown(doc, found["link"])


def spread(line: str) -> str:
    """A class's equation with gaps where words begin that say more about it, so that it may break there."""
    return re.sub(r"([,;]) (?=[a-z]{2,}|[A-Za-z]\w* = )", r"\1   ", line.replace("\n", " ").rstrip("."))


def table_of_options(kind: str, name: str) -> str:
    from bestiary.cli.describe import type_text
    from bestiary.spec import schema

    known = schema(kind, name)
    if not known:
        return "It has no options."
    rows = [f"| `{option}` | {cell(type_text(type_))} | `{shown(value)}` |" for option, (type_, value) in known.items()]
    return "| option | type | default |\n|---|---|---|\n" + "\n".join(rows)


def shown(value: Any) -> str:
    """A default as one would type it; mixers as a pattern."""
    from bestiary import Spec

    specs = isinstance(value, tuple) and value and all(isinstance(part, Spec) for part in value)
    return repr(", ".join(map(str, value)) if specs else value)


def task(package: Package, name: str) -> dict[str, Any]:
    from bestiary import spec
    from bestiary.tasks._task import SILENT

    found = entry(package, "tasks", name)
    built = spec("tasks", name).build()
    batch = built.draw(64, "show", 0)
    scored = (batch.targets != SILENT).sum(1).double().mean().item()
    facts = [
        f"Vocabulary {built.vocab:,}, length {built.length:,}, chance {built.chance:.2g}, plateau {built.plateau:.3g}."
    ]
    if built.open:
        facts.append(f"Not every answer can be known: {escaped(built.open)}.")
    text = [found["head"], found["doc"], class_doc(found), table_of_options("tasks", name), " ".join(facts)]
    text += [*settings(built), drawn(built, batch)]
    return found | {
        "size": f"{scored:.4g} of {built.length:,}",
        "share": f"{built.chance:.2g}",
        "text": "\n\n".join(filter(None, text)),
    }


def settings(built: Any) -> Iterator[str]:
    """The presets of a task and its axes of difficulty."""
    rows = [f"| preset | `{name}` | `{value}` |" for name, value in built.presets.items()]
    rows += [f"| axis | `{name}` | `{', '.join(map(str, values))}` |" for name, values in built.axes.items()]
    if rows:
        head = "| | name | options, or values from easy to hard |\n|---|---|---|"
        yield "\n".join(["<details><summary>Presets and axes</summary>\n", head, *rows, "\n</details>"])


def drawn(built: Any, batch: Any, most: int = 40) -> str:
    """The first positions of one sequence."""
    from bestiary.tasks._task import SILENT

    if built.features:
        return ""
    tokens, answers = batch.tokens[0, :most].tolist(), batch.targets[0, :most].tolist()
    shown = ["." if answer == SILENT else str(answer) for answer in answers]
    width = max(len(text) for text in [*map(str, tokens), *shown])
    end = " ..." if built.length > most else ""
    rows = [
        "tokens   " + " ".join(f"{t:>{width}}" for t in tokens) + end,
        "targets  " + " ".join(f"{a:>{width}}" for a in shown) + end,
    ]
    return "One sequence, as the task draws it:\n\n```text\n" + "\n".join(rows) + "\n```"


def cell(text: str) -> str:
    return escaped(text.replace("\n", " "))
