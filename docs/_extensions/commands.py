"""The reference of the command line, from the application itself."""

import inspect
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from api import put
from prose import escaped


def write(out: Path) -> None:
    """One page: every verb with its usage, its arguments and its options."""
    import typer

    from bestiary.cli import app

    group: Any = typer.main.get_command(app)
    verbs = dict(sorted(group.commands.items()))
    rows = "\n".join(f"| [`{name}`](#verb-{name}) | {cell(first_line(verb.help))} |" for name, verb in verbs.items())
    parts = "\n\n".join(section(name, verb) for name, verb in verbs.items())
    put(
        out / "commands.md",
        f"""# Command line

`./lab VERB` in a checkout and `bestiary VERB` after an installation are the same.
This page is made from the program; `bestiary VERB --help` prints the same.

| verb | what it does |
|---|---|
{rows}

{parts}
""",
    )


def section(name: str, verb: Any) -> str:
    arguments = [part for part in verb.params if part.param_type_name == "argument"]
    options = [part for part in verb.params if part.param_type_name == "option"]
    usage = " ".join(["bestiary", name, *(metavar(part) for part in arguments), "[OPTIONS]"])
    rows = [(f"`{metavar(part)}`", part, "required" if part.required else "") for part in arguments]
    kinds = get_type_hints(inspect.unwrap(verb.callback))
    rows += [(spelled(part, kinds[part.name]), part, default(part)) for part in options if part.name in kinds]
    table = "\n".join(f"| {label} | {cell(part.help or '')} | {value} |" for label, part, value in rows)
    return f"""(verb-{name})=
## {name}

{escaped(verb.help or "")}

```text
{usage}
```

| argument or option | meaning | default |
|---|---|---|
{table}
"""


def spelled(part: Any, kind: Any) -> str:
    """An option and what it takes."""
    names = ", ".join(f"`{name}`" for name in part.opts)
    return names if kind is bool else f"{names} {cell(kind_of(kind))}"


def kind_of(kind: Any) -> str:
    """What an option takes, in words."""
    kinds = [part for part in get_args(kind) if part is not type(None)] or [kind]
    kind = kinds[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(choice.value for choice in kind)
    return {"str": "text", "Path": "path", "int": "whole number", "float": "number"}.get(
        getattr(kind, "__name__", ""), ""
    )


def default(part: Any) -> str:
    if part.required:
        return "required"
    value = getattr(part.default, "value", part.default)
    return (
        "" if value is False or value in (None, "", ()) or callable(value) else "yes" if value is True else f"`{value}`"
    )


def metavar(part: Any) -> str:
    name = (part.metavar or part.name or "").upper()
    name = f"{name} ..." if part.nargs == -1 else name
    return name if part.required else f"[{name}]"


def first_line(text: str | None) -> str:
    return (text or "").split("\n\n")[0].replace("\n", " ")


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return escaped(text.replace("\n", " "))
