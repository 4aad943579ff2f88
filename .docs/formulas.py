"""Markdown of the docstrings: formulas in double backticks become MathML, names in single ones links to their pages.

Docstrings hold formulas that read well in a terminal, ``q = round(w / s) + z``. Browsers draw MathML without a script or a
font from elsewhere. What is not clearly a formula (a path, a call, a string) stays code.
"""

import re
from collections.abc import Callable
from xml.etree.ElementTree import Element, SubElement

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import AtomicString

GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "eta": "η",
    "theta": "θ",
    "lambda": "λ",
    "mu": "μ",
    "pi": "π",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "phi": "φ",
    "psi": "ψ",
    "omega": "ω",
    "Sigma": "Σ",
    "Delta": "Δ",
}
OPERATORS = {"*": "·", "**": "^", "*=": "·=", "<=": "≤", ">=": "≥", "!=": "≠", "-": "−", "~": "≈", "->": "→", "'": "′"}
BIG = {"sum": "∑", "prod": "∏"}
TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z]+\d*(?:_[A-Za-z0-9]+)*|\*\*|[-+<>!*]=|->|\|\||[-+*/^=<>()\[\]|,'~.])")
ENDS, STARTS = re.compile(r"[\w)\]|']$"), re.compile(r"[\w(\[|]")
"""Between two such, a space means a product."""
IS_FORMULA = re.compile(
    r"\^|\*\*| [=*/<>~] | [-+*]= | <= | >= |\|.+\||\b(?:sqrt|sum|mean|log|exp|max|min)[(_ ]|[+-] |^[A-Za-z]_[a-z]$"
)
IS_CODE = re.compile(
    r"""["'`{}:@#\\]?(?:"|\{|\}|:|@|\#|\\|`)        # strings, dictionaries, types
    |[A-Za-z]\w*\.[A-Za-z]                           # attributes
    |[\w)]/[A-Za-z*]\w{2,}|^/|\w=\w|//|\.\.\.?\S*\(   # paths, keyword arguments, whole division
    |\b(?:return|import|for|in|lambda|def|dtype|None|True|False|params|tstate)\b
    |\(\)|\*\w+\)|,\s*\*|<\w+>|-?-\w{3,}""",
    re.VERBOSE,
)


def mathml(text: str) -> Element | None:
    """The formula as MathML; None if it is none.

    >>> from xml.etree.ElementTree import tostring
    >>> tostring(mathml("x^2"), encoding="unicode")
    '<math><msup><mi>x</mi><mn>2</mn></msup></math>'
    >>> mathml('prune(0.5, structure="2:4")') is mathml("Dense_0/kernel") is None
    True
    """
    text = re.sub(r"\s+", " ", text.strip())
    if not IS_FORMULA.search(text) or IS_CODE.search(text):
        return None
    tokens, place = [], 0
    while place < len(text.rstrip()):
        if not (found := TOKEN.match(text, place)):
            return None
        if tokens and found.start(1) > place and ENDS.search(tokens[-1]) and STARTS.match(found.group(1)):
            tokens.append(" ")
        tokens.append(found.group(1))
        place = found.end()
    try:
        parts, left = _row(tokens, None)
    except (IndexError, ValueError):
        return None
    if left:
        return None
    math = Element("math")
    math.extend(parts)
    return math


def _row(tokens: list[str], closing: str | None) -> tuple[list[Element], list[str]]:
    """Elements up to a closing bracket, which is left out, and the tokens after it."""
    row: list[Element] = []
    while tokens and tokens[0] != closing:
        element, tokens = _atom(tokens)
        while tokens and tokens[0] in ("'", "^", "**"):
            mark, tokens = tokens[0], tokens[1:]
            if mark == "'":
                raised = _leaf("mo", "′")
            else:
                raised, tokens = _exponent(tokens)
            whole = Element("msup")
            whole.extend([element, raised])
            element = whole
        row.append(element)
    if closing is not None and not tokens:
        raise ValueError("a bracket is not closed")
    return row, tokens[1:]


def _exponent(tokens: list[str]) -> tuple[Element, list[str]]:
    """What is raised: a bracket's inside, or one number or name with its sign."""
    if tokens[0] == "(":
        inside, tokens = _row(tokens[1:], ")")
        return _group(inside), tokens
    if tokens[0] in "+-":
        one, after = _atom(tokens[1:])
        return _group([_leaf("mo", OPERATORS.get(tokens[0], tokens[0])), one]), after
    return _atom(tokens)


def _atom(tokens: list[str]) -> tuple[Element, list[str]]:
    token, after = tokens[0], tokens[1:]
    if token == "sqrt" and after and after[0] == "(":
        inside, after = _row(after[1:], ")")
        root = Element("msqrt")
        root.extend(inside)
        return root, after
    for opening, closing in (("(", ")"), ("[", "]"), ("||", "||"), ("|", "|")):
        if token == opening:
            inside, after = _row(after, closing)
            shown = "‖" if opening == "||" else None
            edges = [_leaf("mo", shown or opening), *inside, _leaf("mo", shown or closing)]
            return _group(edges), after
    if token == " ":
        return Element("mspace", {"width": "0.25em"}), after
    if token in (")", "]", "^", "**"):
        raise ValueError(token)
    if token[0].isdigit():
        return _leaf("mn", token), after
    if token[0].isalpha():
        return _name(token), after
    return _leaf("mo", OPERATORS.get(token, token)), after


def _name(token: str) -> Element:
    """A variable, and what stands below it; words are upright."""
    base, _, below = token.partition("_")
    if len(base) > 1 and below and len(below) > 2 and base not in (*BIG, *GREEK):
        return _leaf("mtext", token)  # a name of code within a formula
    if not below and (numbered := re.fullmatch(r"([A-Za-z])(\d)", base)):
        base, below = numbered.groups()
    shown = _leaf("mo", BIG[base]) if base in BIG else _leaf("mi", GREEK.get(base, base))
    if not below:
        return shown
    whole = Element("munder" if base in BIG else "msub")
    whole.extend([shown, _leaf("mi", GREEK.get(below, below.replace("_", ",")))])
    return whole


def _leaf(tag: str, text: str) -> Element:
    element = Element(tag)
    element.text = AtomicString(text)
    return element


def _group(parts: list[Element]) -> Element:
    element = Element("mrow")
    element.extend(parts)
    return element


class Formulas(InlineProcessor):
    """Double backticks: a formula, or code."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:
        element = mathml(m.group(1))
        if element is None:
            element = _leaf("code", re.sub(r"\s+", " ", m.group(1).strip()))
        return element, m.start(0), m.end(0)


class Names(InlineProcessor):
    """Single backticks around a public name: a link to it."""

    def __init__(self, pattern: str, md: Markdown, target: Callable[[str], str | None]) -> None:
        super().__init__(pattern, md)
        self.target = target

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | None, int | None, int | None]:
        found = self.target(m.group(1))
        if found is None:
            return None, None, None
        link = Element("autoref", {"identifier": found, "optional": ""})
        SubElement(link, "code").text = AtomicString(m.group(1))
        return link, m.start(0), m.end(0)


class Docstrings(Extension):
    """Both; ``target`` gives a name's full path, or None."""

    def __init__(self, target: Callable[[str], str | None]) -> None:
        super().__init__()
        self.target = target

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Formulas(r"(?<!`)``([^`]+)``(?!`)", md), "formulas", 195)
        md.inlinePatterns.register(Names(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", md, self.target), "names", 194)
