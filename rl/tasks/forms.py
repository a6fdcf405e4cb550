r"""One form for what is written in many ways: units, currencies, other scripts, thousands, dots.

Pure functions of texts; nothing here parses a formula.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

NESTED = 4  # `\\text` in `\\text`
TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|it)|mbox|operatorname)\s*\{([^{}]*)\}"
)
DOTS = re.compile(r"\\[lc]?dots[bcim]?(?![a-z])|\.\.\.+|…")  # terms that are left out
_BLANKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;!: ]|\\q?quad(?![a-z])|~|\s")
_ENDS = ".,;:。，；：、"

_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ",
    "…": r"\ldots ",
    "ℝ": r"\mathbb{R}", "θ": r"\theta ", "％": "%", "、": ",", "，": ",", "；": ";", "：": ":",
    "。": ".", "．": ".", "（": "(", "）": ")", "＝": "=", "＋": "+", "／": "/",
}  # fmt: skip
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_MONEY = r"\\?\$|[€£¥₹₽₩₪₫฿₿]|\\(?:euro|pounds|texteuro|yen)(?![a-z])(?:\{\})?"
_CURRENCY = re.compile(rf"(?:{_MONEY})\s*(?=[-+]?[\d.])|(?<=[\d}}])\s*(?:{_MONEY})")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
# Groups of three digits, parted by a thin or hard blank, a comma in braces, or a plain blank.
_GAP = r"(?:\\[,;: !]|\{,\}|\\text\{,\}|[  ' ]|,\\!)"
_GROUPS = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{_GAP}\d{{3}})+(?!\d)")
_POWER = re.compile(r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)")
_PERIOD = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_PERCENT = re.compile(r"(?<=[\d}])\s*(?:percent|per cent|percentage points?|pct)(?![a-z])", re.I)

_NUMBER = (
    r"[-+]?(?:\d[\d.,]*(?:/\d+)?|\.\d+|\d*\\frac\s*(?:\{[^{}]*\}\{[^{}]*\}|\d\d))"
    r"(?:\s?\\pi(?![a-z])|\s?\\sqrt\s?(?:\d|\{[^{}]*\}))?"
)
_MIXED = re.compile(r"([-+]?\d+) (\d+)/(\d+)")
_SPELLED = re.compile(r"\\text\s*\{\s*(percent|hundred|thousand|[mb]illion|trillion)\s*\}")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"({_NUMBER})\s*({'|'.join(_SCALES)})(?![a-z])", re.I)
_LARGE = "十百千万萬亿億兆"  # they multiply
_NO_UNIT = (
    r"(?!pi\b|mod\b|sin|cos|tan|cot|sec|csc|log|ln\b|exp\b|sqrt|root|or\b|and\b|times\b|over\b)"
)
_TEXT_UNIT = re.compile(
    r"(?<=[\w})])(?:\s|\\[,;: ]|~)*\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}"
    r"(?:\s*\^\s*\{?-?\d\}?)?$"
)
_SHORT = (
    r"(?:[mckdµμ]m|km|[km]g|[mc]l|ft|in|yd|mi|lbs?|oz|hrs?|min|ms|sec|mph|kmh|kph|k[WVJN]|Hz|[kK]Pa|"
    r"mol|rad|cents?|USD|EUR|GBP|RMB|pts?|(?<=\s)[gmslhLWVJN])"
)
_AREA = r"(?:\s*\^\s*\{?-?\d\}?)?"
_UNIT = re.compile(
    rf"({_NUMBER}(?:\s*\\(?:times|cdot)\s*10\^\{{?-?\d+\}}?)?)(?:\s|\\[,;: ]|~)*"
    rf"(?:(?:\\(?:text|mathrm|mbox|textrm|operatorname)\s*\{{[^{{}}]*\}}{_AREA}\s*[/.]?\s*)+"
    rf"|(?<=\s){_NO_UNIT}[A-Za-zµμ]{{3,30}}[A-Za-z .'/-]{{,40}}{_AREA}"
    rf"|{_SHORT}{_AREA}(?:\s*/\s*(?:[A-Za-z]{{1,6}}){_AREA})?"
    rf"|m{_AREA}\s*/\s*s{_AREA}|[^\W\d_a-zA-Z{_LARGE}][^\W\d_{_LARGE}]*)"
)


def plain(text: str) -> str:
    """Without blanks, `\\text{…}`, `\\left`, `\\right`, dollar signs and what ends a sentence.

    Example:
        >>> plain("\\\\left( 3,\\\\, \\\\text{red} \\\\right).")
        '(3,red)'
    """
    text = _FRACTION.sub(r"\\frac", untexted(unicodedata.normalize("NFC", text)))
    text = _BLANKS.sub("", text.replace("**", "").translate({0x2212: "-"}))
    return re.sub(r"\\?\$", "", text).replace(r"\%", "%").rstrip(_ENDS)


def formula(text: str) -> str:
    r"""A formula as the parser reads it: ASCII, without currency, unit or thousands separators.

    Example:
        >>> formula("€1 000,"), formula("2¾"), formula("15个"), formula("1.5e-3")
        ('1000', '2\\frac{3}{4}', '15', '1.5\\times10^{-3}')
    """
    text = _ascii(" ".join(text.replace("**", "").split()))
    if (worded := TEXT.fullmatch(text)) and re.search(r"\d", text):
        text = worded[1]
    text = _GROUPS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _CURRENCY.sub("", _undelimited(text)).strip().rstrip(_ENDS).strip()
    text = _CURRENCY.sub("", text).strip()
    text = _PERCENT.sub(r"\\%", _SPELLED.sub(r" \1", text.replace("{:}", ":")))
    text = re.sub(r"(?<!\\)%", r"\\%", _FRACTION.sub(r"\\frac", text))
    text = _SCALE.sub(lambda m: rf"{m[1]}\times10^{{{_SCALES[m[2].lower()]}}}", text)
    if found := _POWER.fullmatch(text):
        return rf"{found[1]}\times10^{{{int(found[2])}}}"
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _PERIOD.sub(_periodic, text))
    if found := _UNIT.fullmatch(text):
        return found[1].rstrip(_ENDS)
    return _TEXT_UNIT.sub("", text)


def terms(text: str, marks: str = ",;") -> list[str]:
    """What stands between the marks that are in no bracket.

    Example:
        >>> terms("1, (2, 3)")
        ['1', '(2, 3)']
    """
    parts, depth, start = [], 0, 0
    for at, character in _unescaped(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in marks:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _unescaped(text: str) -> Iterator[tuple[int, str]]:
    """Characters with their places; of `\\{` and `\\}` the brace, of `\\,` nothing."""
    escaped = False
    for at, character in enumerate(text):
        if not (escaped and character not in "{}"):
            yield at, character
        escaped = character == "\\" and not escaped


def untexted(text: str) -> str:
    """Without `\\text{…}` and the like around texts, from the inside out."""
    for _ in range(NESTED):
        text = TEXT.sub(r"\1", text)
    return text


def _undelimited(text: str) -> str:
    """Without the signs of a formula around the whole."""
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$")):
        inner = text[len(left) : -len(right)]
        if len(text) > len(left + right) and text == left + inner + right and left not in inner:
            return inner.strip()
    return text


def _ascii(text: str) -> str:
    """Signs of Unicode as TeX: fractions, powers, roots, operators, digits of full width."""
    if text.isascii():
        return text
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    text = _RAISED.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    for sign in {each for each in text if not each.isascii()}:
        whole, slash, part = unicodedata.normalize("NFKC", sign).partition("⁄")
        if slash:
            text = text.replace(sign, rf"\frac{{{whole}}}{{{part}}}")
        elif sign in _SIGNS:
            text = text.replace(sign, _SIGNS[sign])
    return unicodedata.normalize("NFKC", text)


def _periodic(found: re.Match[str]) -> str:
    """The fraction that a decimal with a period is: 0.1(6) = (16 − 1)/90."""
    whole, fixed, period = found[1] or "0", found[2], found[3]
    over = int("9" * len(period) + "0" * len(fixed))
    return rf"\frac{{{int(whole + fixed + period) - int(whole + fixed)}}}{{{over}}}"
