"""The reference of the Python interface: a page for each file of the package, under a page for each room."""

import ast
import copy
import json
from collections.abc import Iterator
from pathlib import Path

from prose import linker, markdown
from source import CATALOGUED, CONTRACTS, PACKAGE, Member, Module, Package

WRITTEN: set[Path] = set()  # every page of this build, so that those of things that are gone can be removed


def write(package: Package, out: Path, order: tuple[str, ...]) -> None:
    """Write the pages, rooms in the order in which they may import each other."""
    out.mkdir(parents=True, exist_ok=True)
    rooms: dict[str, list[Module]] = {room: [] for room in ("bestiary", *order)}
    for module in package.modules:
        if module.room in rooms and is_shown(module):
            rooms[module.room].append(module)
    shown = {room: parts for room, parts in rooms.items() if parts}
    for room, parts in shown.items():
        for module in parts:
            put(out / f"{module.name}.md", page(package, module))
        if not is_file(room):
            put(out / f"{room}-room.md", room_page(room, parts))
    pages = [f"bestiary.{room}" if is_file(room) else f"{room}-room" for room in shown if room != "bestiary"]
    put(out / "index.md", index(["bestiary", *pages]))


def is_shown(module: Module) -> bool:
    """Whether a file has a page here: those of mixers, tasks and experiments are in catalogues of their own."""
    file = str(module.file.relative_to(PACKAGE))
    return module.room not in CATALOGUED or file in CONTRACTS or file == "experiments/__init__.py"


def is_file(room: str) -> bool:
    return room == "bestiary" or (PACKAGE / f"{room}.py").is_file()


def put(file: Path, text: str) -> None:
    """Write a page unless it says so already, so that Sphinx reads again only what has changed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    WRITTEN.add(file)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def index(pages: list[str]) -> str:
    listed = "\n".join(pages)
    return f"""# Python reference

Every public class and function, by the part of the package that it belongs to.
A part imports only from those above it; [the architecture](../../architecture.md) says what each is for.
Signatures stand as they are written: `Float[Tensor, "batch time dim"]` is a tensor of real numbers with three axes.

```{{toctree}}
:maxdepth: 2

{listed}
```
"""


def room_page(room: str, parts: list[Module]) -> str:
    listed = "\n".join(f"{module.name.removeprefix('bestiary.')} <{module.name}>" for module in parts)
    rows = "\n".join(f"| [{module.name}]({module.name}.md) | {summary(module)} |" for module in parts)
    return f"""# {room}

| file | holds |
|---|---|
{rows}

```{{toctree}}
:hidden:

{listed}
```
"""


def summary(module: Module) -> str:
    first = module.doc.split("\n\n")[0].replace("\n", " ")
    return markdown(first, lambda _: "").replace("|", "\\|")


def page(package: Package, module: Module) -> str:
    """A file's docstring and its public names."""
    doc = markdown(module.doc, linker(package, module))
    parts = [f"# {module.name}", f"```{{py:module}} {module.name}\n```", doc]
    parts += ["\n".join(member(package, module, part)) for part in module.members]
    if module.name == "bestiary":
        parts.append(exported(package, module))
    return "\n\n".join(parts) + "\n"


def exported(package: Package, module: Module) -> str:
    """What the package's face passes on from its parts."""
    names = next(
        ast.literal_eval(n.value)
        for n in module.tree.body
        if isinstance(n, ast.Assign) and "__all__" in ast.unparse(n.targets[0])
    )
    homes = {full.rpartition(".")[2]: full for full in package.linked if full.count(".") >= 2}
    rows = [f"- {{py:obj}}`{name} <{package.resolve(name, module) or homes[name]}>`" for name in names if name in homes]
    return "Names that `from bestiary import ...` gives:\n\n" + "\n".join(rows)


def member(package: Package, module: Module, part: Member, depth: int = 6) -> Iterator[str]:
    """The directive of a name, those of its members inside."""
    fence, inside = ":" * depth, part.name if part.kind == "class" else part.name.rpartition(".")[0]
    yield f"{fence}{{py:{part.kind}}} {signature(package, module, part)}"
    yield from options(package, module, part)
    yield ""
    doc = part.doc or part.comment
    owner, _, name = part.name.rpartition(".")
    if not doc and owner:
        doc = package.inherited(f"{module.name}.{owner}", name)
    if doc:
        yield markdown(doc, linker(package, module, inside))
        yield ""
    for child in part.members:
        yield from member(package, module, child, depth - 1)
    yield fence
    yield ""


def signature(package: Package, module: Module, part: Member) -> str:
    """A name with its arguments, names of ours written in full, so that they are links."""
    node = part.node
    if part.kind == "class":
        init = next(
            (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
        )
        return part.name + (f"({arguments(package, module, init, bound=True)})" if init else "")
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or part.kind == "property":
        return part.name
    bound = part.kind == "method" and not any(ast.unparse(mark) == "staticmethod" for mark in node.decorator_list)
    returns = f" -> {full(package, module, node.returns)}" if node.returns else ""
    return f"{part.name}({arguments(package, module, node, bound=bound)}){returns}"


def arguments(package: Package, module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> str:
    args = copy.deepcopy(node.args)
    if bound and (args.posonlyargs or args.args):
        (args.posonlyargs or args.args).pop(0)
    for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if arg is not None and arg.annotation is not None:
            arg.annotation = ast.parse(full(package, module, arg.annotation), mode="eval").body
    return ast.unparse(args)


class InFull(ast.NodeTransformer):
    """Writes names that the package documents in full, and annotations in quotes without them."""

    def __init__(self, package: Package, module: Module) -> None:
        self.package, self.module = package, module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        found = self.package.resolve(node.id, self.module)
        return ast.parse(found, mode="eval").body if found in self.package.linked else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        shape = ast.unparse(node.value) in ("Float", "Int", "Bool", "Complex", "Shaped", "Literal")  # text, not names
        node.slice = node.slice if shape else self.visit(node.slice)
        node.value = self.visit(node.value)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self.visit(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node


def full(package: Package, module: Module, annotation: ast.expr) -> str:
    return ast.unparse(InFull(package, module).visit(copy.deepcopy(annotation)))


def options(package: Package, module: Module, part: Member) -> Iterator[str]:
    """Types, values and marks below a directive's first line."""
    node = part.node
    match node:
        case ast.AnnAssign():
            yield f":type: {json.dumps(full(package, module, node.annotation))}"
            if node.value is not None:
                yield f":value: {json.dumps(ast.unparse(node.value))}"
        case ast.Assign():
            yield f":value: {json.dumps(shortened(ast.unparse(node.value)))}"
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            marks = {ast.unparse(mark) for mark in node.decorator_list}
            if part.kind == "property":
                if node.returns:
                    yield f":type: {json.dumps(full(package, module, node.returns))}"
            elif part.kind == "method":
                known = {
                    "abstractmethod": "abstractmethod",
                    "classmethod": "classmethod",
                    "staticmethod": "staticmethod",
                }
                yield from (f":{known[mark]}:" for mark in sorted(marks) if mark in known)


def shortened(text: str, most: int = 110) -> str:
    return text if len(text) <= most else text[: most - 4] + " ..."
