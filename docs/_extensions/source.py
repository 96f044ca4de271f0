"""The package read as text: its modules, and every public name with its signature as written and its docstring.

Nothing is imported, so that optional dependencies need not be there and annotations stay as their author wrote them.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bestiary"
CONTRACTS = ("tasks/_task.py", "mixers/_mixer.py", "mixers/_wrap.py")  # private files that authors read
UNLISTED = ("cli", "interop")  # the command line has a reference of its own; interop forwards old names
CATALOGUED = ("mixers", "tasks", "experiments")  # listed one by one in pages of their own
TORCH_DOCUMENTS = ("forward",)  # methods of nn.Module that every module overrides

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Member:
    """A public function, class, method, field or constant."""

    kind: str  # function, class, method, property, attribute, data
    name: str  # within its module, as in Model.forward
    node: ast.AST
    doc: str = ""
    comment: str = ""
    members: list["Member"] = field(default_factory=list)


@dataclass
class Module:
    """A file of the package."""

    file: Path

    @property
    def name(self) -> str:
        parts = self.file.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts).removesuffix(".__init__")

    @property
    def room(self) -> str:
        """The part of the package that it belongs to."""
        return (self.name.split(".") + ["bestiary"])[1] if "." in self.name else "bestiary"

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.file.read_text())

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.tree) or ""

    @cached_property
    def comments(self) -> dict[int, str]:
        """What stands behind the code of a line."""
        tokens = tokenize.generate_tokens(io.StringIO(self.file.read_text()).readline)
        return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}

    @cached_property
    def imports(self) -> dict[str, str]:
        """Names that the file imports from the package, each with where it comes from."""
        return {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bestiary")
            for alias in node.names
        }

    @cached_property
    def members(self) -> list[Member]:
        """Public names in the order of the file."""
        return [member for node in self.tree.body for member in self.read(node, "")]

    def read(self, node: ast.AST, inside: str) -> Iterator[Member]:
        """The public name that a statement defines, if it does."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not node.name.startswith("_"):
                marks = {ast.unparse(mark) for mark in node.decorator_list}
                if any("validator" in mark for mark in marks):  # pydantic calls it, nobody else does
                    return
                kind = ("property" if marks & {"property", "cached_property"} else "method") if inside else "function"
                yield Member(kind, inside + node.name, node, ast.get_docstring(node) or "")
            case ast.ClassDef() if not node.name.startswith("_"):
                name = inside + node.name
                parts = [part for child in node.body for part in self.read(child, name + ".")]
                yield Member("class", name, node, ast.get_docstring(node) or "", members=parts)
            case ast.AnnAssign(target=ast.Name(id=name)) if inside and not name.startswith("_"):
                yield Member("attribute", inside + name, node, comment=self.comments.get(node.lineno, ""))
            case ast.Assign(targets=[ast.Name(id=name)]) if not inside and not name.startswith("_"):
                comment = self.comments.get(node.lineno, "")
                if comment or is_alias(name, node.value):
                    yield Member("data", name, node, comment=comment)


def is_alias(name: str, value: ast.expr) -> bool:
    """Whether a name stands for a type."""
    return bool(re.match(r"[A-Z][a-z]", name)) and isinstance(value, ast.Subscript | ast.BinOp | ast.Name)


def modules() -> list[Module]:
    """Every file of the package that others may import from."""
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if not file.name.startswith("_")]
    files += [PACKAGE / name for name in CONTRACTS]
    files += [file for file in sorted(PACKAGE.rglob("__init__.py")) if file.read_text().strip()]
    return [module for module in map(Module, files) if module.room not in UNLISTED]


def every(members: list[Member]) -> Iterator[Member]:
    """Members and the members of classes."""
    for member in members:
        yield member
        yield from every(member.members)


class Package:
    """All modules, and what is known of each name in them."""

    def __init__(self) -> None:
        self.modules = modules()
        self.private = [Module(f) for f in sorted(PACKAGE.rglob("_*.py")) if f.name != "__init__.py"]
        self.listed = {f"{m.name}.{part.name}": part for m in self.modules for part in every(m.members)}
        self.linked = {n for n in self.listed if n.split(".")[1] not in CATALOGUED or n.split(".")[2].startswith("_")}
        self.classes = {
            f"{m.name}.{node.name}": (m, node)
            for m in [*self.modules, *self.private]
            for node in m.tree.body
            if isinstance(node, ast.ClassDef)
        }

    def resolve(self, name: str, module: Module) -> str | None:
        """The full name of what a name means in a module, if the package defines it."""
        head, _, rest = name.partition(".")
        for found in (f"{module.name}.{name}", f"{module.imports.get(head, '')}{'.' + rest if rest else ''}", name):
            if found in self.listed or found in self.classes:
                return found
        return None

    def ancestors(self, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
        """The classes of the package that a class inherits from, nearest first."""
        if name not in self.classes:  # one inside another
            return
        module, node = self.classes[name]
        for base in node.bases:
            text = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            found = self.resolve(text, module)
            if found in self.classes and found != name:
                yield found, self.classes[found][1]
                yield from self.ancestors(found)

    def inherited(self, owner: str, method: str) -> str:
        """The docstring that a method has from the class that it overrides a method of."""
        for _, node in self.ancestors(owner):
            for child in node.body:
                if isinstance(child, Definition) and child.name == method and (doc := ast.get_docstring(child)):
                    return doc
        return ""

    def undocumented(self) -> list[str]:
        """Public names without a docstring, of their own or inherited."""
        contract = set(re.findall(r"^def (\w+)", Module(PACKAGE / "experiments" / "__init__.py").doc, re.MULTILINE))
        found = [module.name for module in self.modules if module.tree.body and not module.doc]
        for module in self.modules:
            for member in every(module.members):
                owner, _, method = member.name.rpartition(".")
                if member.kind not in ("function", "class", "method", "property") or member.doc:
                    continue
                if owner and member.kind == "class":  # the parts of a state, which its fields explain
                    continue
                if module.room == "experiments" and member.name in contract:
                    continue
                if owner and (method in TORCH_DOCUMENTS or self.inherited(f"{module.name}.{owner}", method)):
                    continue
                found.append(f"{module.name}.{member.name}")
        return found
