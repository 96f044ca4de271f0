"""The text of a pattern, such as `3*gated_delta, attention(window=64)`, as calls; nothing is looked up or evaluated."""

import ast
import io
import re
import tokenize
import warnings
from itertools import pairwise
from typing import Any, NamedTuple

from bestiary.spec.loading import file_path, is_file, shortened, split_file

LAYERS = 4096  # the most that a pattern may have, those within others included
LONGEST = 2**16  # characters of a pattern

PATH = re.compile(r"[\w./~+-]*[\w-]\.py(?::[^\W\d]\w*)?")  # what needs no quotes in a pattern
QUOTED_OR_PATH = re.compile(
    rf"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?<![\w./~+-]){PATH.pattern}(?=\s*(?:[(,]|$))""", re.DOTALL
)


class Call(NamedTuple):
    """One part of a pattern as it is written."""

    name: str
    preset: str
    options: dict[str, Any]


def read_pattern(text: str) -> list[Call]:
    """The parts of a pattern, repeated as it says, nothing looked up. Raises ValueError."""
    text = text.strip()
    if len(text) > LONGEST:
        raise ValueError(f"a pattern of {len(text):,} characters is too long; {LONGEST:,} are the most")
    if is_file(text) and not PATH.fullmatch(text) and file_path(split_file(text)[0], missing_ok=True) is not None:
        return [Call(text, "", {})]
    quoted = QUOTED_OR_PATH.sub(lambda found: found[0] if found[0][0] in "'\"" else repr(found[0]), text)
    try:
        with warnings.catch_warnings(action="ignore"):
            parsed = ast.parse(quoted, mode="eval").body
            check_tokens(quoted)
            return read_parts(parsed)
    except (RecursionError, MemoryError):
        raise ValueError(f"cannot read {shortened(text)}: it is nested too deep") from None
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        if is_file(text) and not re.search(r"""[,()*"']""", text):
            raise ValueError(f"there is no file {shortened(text)}") from None
        if live := re.search(r"<(\w+)>", text):
            lost = f"{live[1]} is known only where it was defined, as in a notebook"
            raise ValueError(f"{lost}: put the class in a file, and import it") from None
        hint = error if type(error) is ValueError else "write name, name(option=value) or 3*name, between commas"
        raise ValueError(f"cannot read {shortened(text)}: {hint}") from None


def check_tokens(text: str) -> None:
    """Raise ValueError for what Python would pass over in an expression: a comment, or no comma between two texts."""
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    for token, after in pairwise(tokens):
        if token.type == tokenize.COMMENT:
            raise ValueError(f"{shortened(token.string)} would be left out as a comment; a pattern has none")
        if token.type == after.type == tokenize.STRING:
            first, second = (" ".join(one.string.split())[:100] for one in (token, after))
            raise ValueError(f"there is no comma between {first} and {second}")


def read_parts(node: ast.expr) -> list[Call]:
    """The parts that an expression stands for."""
    match node:
        case ast.Tuple(elts=parts) if parts:
            found = [call for part in parts for call in read_parts(part)]
        case ast.BinOp(left=ast.Constant(value=int(times)), op=ast.Mult(), right=part) if times is not True and times:
            found = read_parts(part)
            found = found * times if times * len(found) <= LAYERS else found * (LAYERS // len(found) + 1)
        case ast.Call(func=called, args=[] | [ast.Constant(value=str())] as first, keywords=options) if all(
            option.arg for option in options
        ):
            names = ["mixers"] * len(first) + [str(option.arg) for option in options]  # serial('a, b')
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"option {name!r} is given twice")
            values = [read_value(value) for value in (*first, *(option.value for option in options))]
            found = [Call(*read_name(called), dict(zip(names, values, strict=True)))]
        case _:
            found = [Call(*read_name(node), {})]
    if len(found) > LAYERS:
        raise ValueError(f"it has more than {LAYERS:,} layers")
    return found


def read_name(node: ast.expr) -> tuple[str, str]:
    """The name, or the path, and the preset."""
    match node:
        case ast.Attribute(value=ast.Name() | ast.Constant(value=str()) as called, attr=preset):
            return read_name(called)[0], preset
        case ast.Name(id=name):
            return name, ""
        case ast.Constant(value=str(path)) if is_file(path):
            return path, ""
        case ast.Constant(value=str(path)):
            raise ValueError(f"{shortened(path)} is in quotes, so it is the path of a file and must end in .py")
        case _:
            raise ValueError(f"{shortened(ast.unparse(node))} is none of name, name(option=value), 3*name")


def read_value(node: ast.expr) -> Any:
    """The value of an option. Raises ValueError for what is no literal."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        written = shortened(ast.unparse(node))
        raise ValueError(f"{written} is not a value; quote text as in filler='zero'") from None
