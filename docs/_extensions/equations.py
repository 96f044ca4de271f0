"""Equations as docstrings write them, `S_t = alpha_t S_{t-1} + k_t v_t^T`, as MathML, which browsers draw offline."""

import re
from html import escape

GREEK = dict(
    zip(
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "phi",
            "chi",
            "psi",
            "omega",
        ],
        ["α", "β", "γ", "δ", "ε", "ζ", "η", "θ", "κ", "λ", "μ", "ν", "ξ", "π", "ρ", "σ", "τ", "φ", "χ", "ψ", "ω"],
        strict=True,
    )
) | {"Lambda": "Λ", "Delta": "Δ", "lam": "λ"}
LARGE = {"sum": "∑", "prod": "∏"}
SIGNS = {"<=": "≤", ">=": "≥", "<-": "←", "->": "→", "-": "−", "*": "⊙", ".": "·", "...": "⋯"}
TOKEN = re.compile(
    r"(?P<code>`[^`]+`)|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<name>[a-z]{2,}-[a-z]{2,}|[A-Za-z]+)|(?P<space>\s+)"
    r"|(?P<sign>\.\.\.|<=|>=|<-|->|[^\w\s]|_)"
)
WORDS = ("in", "up")  # in an index, where other pairs of letters are two indices
CLOSING = {"(": ")", "[": "]", "{": "}"}


def equation_block(text: str) -> str:
    """Equations as HTML, each group between empty lines in a box."""
    return "\n\n".join(box(part.strip("\n")) for part in text.split("\n\n"))


def box(text: str) -> str:
    """Lines of equations; a list of names with a definition each stays as it is written."""
    lines = text.splitlines()
    if any(line.startswith("    ") for line in lines) or sum(bool(re.match(r"\w+:? {2,}\S", s)) for s in lines) > 1:
        return f"```text\n{text}\n```"
    rows = "".join(f'<div class="equation-row">{row(line)}</div>' for line in lines)
    return f'<div class="equation">{rows}</div>'


def row(line: str) -> str:
    """One line, whose parts stand apart where two spaces or more do, and may break there."""
    return "".join(math(part) for part in re.split(r"\s{2,}", line.strip()))


def math(text: str) -> str:
    """An equation as a MathML element."""
    return f'<math aria-label="{escape(text)}"><mrow>{"".join(Reader(text).items())}</mrow></math>'


class Reader:
    """Reads tokens from the left."""

    def __init__(self, text: str) -> None:
        self.tokens = [(str(found.lastgroup), found[0]) for found in TOKEN.finditer(text)]
        self.at = 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ("end", "")

    def items(self, until: str = "") -> list[str]:
        """Everything up to a closing bracket, or to the end."""
        found = []
        while self.peek()[0] != "end" and self.peek()[1] != until:
            found.append(self.scripted(self.atom()))
        return found

    def atom(self) -> str:
        kind, text = self.peek()
        self.at += 1
        match kind:
            case "number":
                return f"<mn>{text}</mn>"
            case "code":
                return f'<mtext class="option">{escape(text.strip("`"))}</mtext>'
            case "space":
                return self.space()
            case "name":
                return self.named(text)
        return f"<mo>{escape(SIGNS.get(text, text))}</mo>"

    def space(self) -> str:
        """A gap between two things that would else run together, such as words."""
        before, after = self.peek(-2), self.peek()
        words = after[0] in ("name", "code", "number") and (
            before[0] in ("name", "code", "number") or before[1] in ",;)"
        )
        long = max(len(GREEK.get(before[1], before[1])), len(GREEK.get(after[1], after[1]))) > 1 or before[1] in ",;"
        return '<mspace width="0.3em"></mspace>' if words and long else ""

    def named(self, name: str) -> str:
        if name == "sqrt" and self.peek()[1] == "(":
            self.at += 1
            inside = "".join(self.items(")"))
            self.at += 1
            return f"<msqrt><mrow>{inside}</mrow></msqrt>"
        if name in LARGE:
            return f'<mo largeop="false" movablelimits="false">{LARGE[name]}</mo>'
        letters = GREEK.get(name, name)
        if self.peek()[1] == "~" and len(letters) == 1:
            self.at += 1
            letters += "\u0303"
        while self.peek()[1] == "'":
            self.at += 1
            letters += "′"
        symbol = f"<mi>{letters}</mi>" if self.is_symbol(name) else f"<mtext>{name}</mtext>"
        if self.peek()[0] == "number" and len(GREEK.get(name, name)) == 1:
            symbol = f"<msub>{symbol}<mn>{self.peek()[1]}</mn></msub>"
            self.at += 1
        return symbol

    def is_symbol(self, name: str) -> bool:
        """Whether a name is a letter or a function, rather than a word."""
        following = self.peek(1)
        if name == "a" and self.peek()[0] == "space" and following[0] == "name" and len(following[1]) > 2:
            return self.peek(2)[1] in ("(", "_", "^")  # the article, unless a function follows
        return len(GREEK.get(name, name)) == 1 or self.peek()[1] in ("(", "_", "^") or name[:1].isupper()

    def scripted(self, base: str) -> str:
        """The base with its indices and powers."""
        below, above = "", ""
        while self.peek()[1] in ("_", "^") or self.is_starred():
            sign = self.peek()[1]
            self.at += 1
            if sign == "_":
                below += self.script()
            else:
                above += "<mo>∗</mo>" if sign == "*" else self.script(power=True)
        if below and above:
            return f"<msubsup>{base}<mrow>{below}</mrow><mrow>{above}</mrow></msubsup>"
        if below:
            return f"<msub>{base}<mrow>{below}</mrow></msub>"
        return f"<msup>{base}<mrow>{above}</mrow></msup>" if above else base

    def is_starred(self) -> bool:
        """Whether an asterisk belongs to the name before it, as in f(M*)."""
        return (
            self.peek()[1] == "*" and self.at > 0 and self.peek(-1)[0] == "name" and self.peek(1)[1] in (")", ",", "")
        )

    def script(self, *, power: bool = False) -> str:
        """What stands in an index or a power: one thing, or many in braces or brackets."""
        kind, text = self.peek()
        if text in ("{", "("):
            self.at += 1
            inside = "".join(self.items(CLOSING[text]))
            self.at += 1
            return inside if text == "{" else f"<mo>(</mo>{inside}<mo>)</mo>"
        if text == "-":
            self.at += 1
            return f"<mo>−</mo>{self.script()}"
        self.at += 1
        if kind != "name":
            return f"<mn>{text}</mn>" if kind == "number" else f"<mo>{escape(text)}</mo>"
        letter = "".join(f"<mi>{symbol}</mi>" for symbol in ([text] if len(text) > 2 or text in WORDS else text))
        letter = f"<mi>{GREEK[text]}</mi>" if text in GREEK else letter
        if power and self.peek()[1] == "_":  # e^i_t is e to the i_t
            self.at += 1
            return f"<msub>{letter}<mrow>{self.script()}</mrow></msub>"
        return letter
