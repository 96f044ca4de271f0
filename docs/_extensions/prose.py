"""Docstrings as Markdown: plain text with `names` between backticks and indented blocks, as the package writes them."""

import re
from collections.abc import Callable, Iterator

from equations import equation_block
from source import Module, Package

Block = tuple[str, str]  # "text", "code" or "doctest", and the lines


def blocks(doc: str) -> Iterator[Block]:
    """A docstring in parts: paragraphs and indented blocks, in order."""
    lines, start = doc.expandtabs().splitlines(), 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        kind = kind_of(lines[start])
        end = start + 1
        while end < len(lines) and belongs(lines, end, kind):
            end += 1
        part = lines[start:end]
        if kind == "text" and sum(bool(re.search(r"\S {3,}\S", line)) for line in part) > 1:
            kind = "code"  # columns
        while not part[-1].strip():
            part.pop()
        indent = min(len(line) - len(line.lstrip()) for line in part if line.strip())
        yield kind, "\n".join(line[indent:] for line in part)
        start = end


def kind_of(line: str) -> str:
    return "code" if line.startswith("    ") else "doctest" if line.startswith(">>>") else "text"


def belongs(lines: list[str], at: int, kind: str) -> bool:
    """Whether a line goes on with the block before it."""
    if lines[at].strip():
        return kind == "doctest" or kind_of(lines[at]) == kind
    following = next((line for line in lines[at:] if line.strip()), "")
    return kind == "code" and kind_of(following) == "code"


def markdown(doc: str, link: Callable[[str], str], *, equations: bool = False) -> str:
    """The docstring as MyST Markdown; indented blocks are equations or text as it stands."""
    parts = []
    for kind, text in blocks(doc):
        if kind == "text":
            text = re.sub(r"\n(?=(Departs from|Initialisation|Facets:|Presets)\b)", "\n\n", text)
            parts.append(linked(escaped(text), link))
        elif kind == "code" and equations:
            parts.append(equation_block(text))
        else:
            language = (
                "python" if kind == "doctest" or re.search(r"^(def |class |from |assert )", text, re.M) else "text"
            )
            parts.append(f"```{language}\n{text}\n```")
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Prose in which Markdown finds nothing but code between backticks and lists."""
    parts = re.split(r"(`[^`]*`|(?<![\w*])\*[A-Za-z][\w -]*\*(?![\w*]))", text)  # code, and *words* in italics
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([*_\[\]<>|~#\\])", r"\\\1", parts[i])
        parts[i] = re.sub(r"^(\s*)([+=-]|\d+[.)])", r"\1\\\2", parts[i], flags=re.M) if i == 0 else parts[i]
    return "".join(parts)


def linked(text: str, link: Callable[[str], str]) -> str:
    """The text with names between backticks as links where there is something to link to."""
    return re.sub(r"`([^`\n]+)`", lambda found: link(found[1]) or found[0], text)


def linker(package: Package, module: Module, inside: str = "") -> Callable[[str], str]:
    """How a docstring's names are linked: those of its class, of its file, of its imports, and full ones."""

    def link(name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", name):
            return ""
        bare = name.removesuffix("()")
        for candidate in (f"{inside}.{bare}" if inside else "", bare):
            found = package.resolve(candidate, module) if candidate else None
            if found in package.listed and found in package.linked:
                return f"{{py:obj}}`{name} <{found}>`"
        return ""

    return link
