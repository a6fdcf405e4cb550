"""Are two formulas equal? math-verify reads them, SymPy computes; no difference is rounded away.

Rationals, and decimals as they are written, are compared exactly; other numbers to 50 digits of
each, so that a tiny value is as good as any. A decimal of six digits and more may stand for what
rounds to it. Formulas with symbols are compared at points; tuples, sets, intervals, matrices,
equations and inequalities part by part.

Nothing here ends by itself: it runs in a process that can be ended (`rl.tasks.worker`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from math import inf, log2
from typing import Any

from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet as UnsortedSet
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from math_verify.grader import (
    get_pct_val,
    is_assignment_relation,
    is_equation,
    is_relation,
    sympy_compare_symbols,
    sympy_expr_eq,
    take_first_relation,
    take_last_relation,
)
from sympy import (
    Eq,
    Expr,
    FiniteSet,
    Float,
    Integer,
    Integral,
    Interval,
    Limit,
    MatrixBase,
    Mul,
    Pow,
    Product,
    Rational,
    Set,
    Sum,
    Symbol,
    Tuple,
    Union,
    factorial,
)
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from probing.traces.text import BOX
from rl.tasks.forms import DOTS, formula, plain, terms

# It says at every call that its time-out is off, which is meant: ours ends the process.
logging.getLogger("math_verify").setLevel(logging.ERROR)

DIGITS = 60  # to which numbers are computed that are not rational
SAME = Rational(1, 10**50)  # of the smaller: a difference below it is none
NOISE = Rational(1, 10**12)  # the same where a decimal is: what binary fractions leave behind
ROUNDED = 6  # a decimal of so many digits may be what another number was rounded to
HUGE = 5e6  # bits; a longer number is not computed
# Values of the symbols at which formulas are compared; the last ones only where both are real.
POINTS = ((7, 5), (13, 6), (5, 11), (-8, 5), (-17, 7))
_UNSURE = (Sum, Product, Integral, Limit, AppliedUndef)
# Units are taken off by `formula`: a product ending in t, c or s is no unit here.
_LATEX = LatexExtractionConfig(
    normalization_config=replace(LatexExtractionConfig().normalization_config, units=False)
)


def equal_formulas(reference: str, given: str) -> bool:
    r"""Whether two formulas, without boxes, are equal.

    Lists with dots are equal element by element, dots to dots.

    Raises:
        Exception: what the parser or SymPy raises, of any type.

    Example:
        >>> equal_formulas(r"\frac{1}{2}", "0.5"), equal_formulas(r"1,2,\ldots,n", r"1,3,\ldots,n")
        (True, False)
    """
    left, right = formula(reference), formula(given)
    if plain(left) == plain(right):
        return True
    if DOTS.search(left) or DOTS.search(right):
        marks = ",;" if len(terms(left)) > 1 else "+"
        parts = [terms(DOTS.sub("…", text), marks) for text in (left, right)]
        return len(parts[0]) == len(parts[1]) > 1 and all(
            plain(a) == plain(b) or ("…" not in a + b and equal_formulas(a, b))
            for a, b in zip(*parts, strict=True)
        )
    return _any_same(read_formula(left), read_formula(right))


def equal_to_text(reference: str, text: str) -> bool:
    """Whether a formula equals what math-verify finds in a text without a box.

    Raises:
        Exception: what the parser or SymPy raises, of any type.
    """
    found = parse(text, (_LATEX, ExprExtractionConfig()), parsing_timeout=None, raise_on_error=True)
    return _any_same(read_formula(formula(reference)), found)


def is_formula(text: str) -> bool:
    """Whether a text can be read as a formula, not as a mere string.

    Raises:
        Exception: what the parser raises, of any type.
    """
    return any(not isinstance(reading, str) for reading in read_formula(formula(text)))


@lru_cache(maxsize=512)  # a reference is asked for again with every response to its question
def read_formula(text: str) -> Sequence[Any]:
    """The readings of a text that is a formula as a whole: of SymPy, and the text itself."""
    found = parse(f"{BOX}{text}}}", (_LATEX,), parsing_timeout=None, raise_on_error=True)
    return tuple(found)


def _any_same(golds: Sequence[Any], given: Sequence[Any]) -> bool:
    return any(same(gold, other) for gold in golds for other in given)


def same(gold: Any, given: Any) -> bool:
    """Whether two readings are equal; a string only to the same string."""
    if isinstance(gold, str) or isinstance(given, str):
        return isinstance(gold, type(given)) and plain(gold) == plain(given) != ""
    gold, given = _unwrapped(gold, given)
    if gold == given:
        return True
    if is_relation(gold) and is_relation(given):
        return _same_relations(gold, given)
    if isinstance(gold, (Set, Tuple)) or isinstance(given, (Set, Tuple)):
        return _same_collections(gold, given)
    if isinstance(gold, MatrixBase) and isinstance(given, MatrixBase):
        pairs = zip(gold.flat(), given.flat(), strict=False)
        return gold.shape == given.shape and all(same(a, b) for a, b in pairs)
    if isinstance(gold, Expr) and isinstance(given, Expr):
        return _same_expressions(gold, given)
    return bool(sympy_expr_eq(gold, given, float_rounding=DIGITS, numeric_precision=DIGITS))


def _unwrapped(gold: Any, given: Any) -> tuple[Any, Any]:
    """`x = 5` beside a 5 is 5, a chain of equations its ends, an inequality beside a set a set."""
    if is_assignment_relation(gold) and is_equation(gold):
        gold = Eq(take_first_relation(gold).lhs, take_last_relation(gold).rhs, evaluate=False)
    if is_assignment_relation(given) and is_equation(given):
        given = Eq(take_first_relation(given).lhs, take_last_relation(given).rhs, evaluate=False)
    if is_equation(given) and not is_relation(gold):
        given = take_last_relation(given).rhs
    elif is_assignment_relation(gold) and not is_relation(given):
        gold = take_last_relation(gold).rhs
    if is_relation(gold) and isinstance(given, Set):
        gold = _solved(gold)
    elif is_relation(given) and isinstance(gold, Set):
        given = _solved(given)
    return gold, given


def _solved(relation: Any) -> Any:
    """The set of the numbers for which a relation in one symbol holds; else the relation."""
    try:
        parts = relation._unsorted_args if isinstance(relation, And) else (relation,)
        found = parts[0].as_set()
        for part in parts[1:]:
            found = found.intersect(part.as_set())
        return found
    except Exception:  # noqa: BLE001  # SymPy raises anything where it cannot solve
        return relation


def _same_relations(gold: Any, given: Any) -> bool:
    """Chains part by part, in either direction; others by sides, by a factor, or when solved."""
    if isinstance(gold, And) and isinstance(given, And):
        ours, theirs = list(gold._unsorted_args), list(given._unsorted_args)
        turned = [part.reversed for part in reversed(theirs)]
        return len(ours) == len(theirs) and any(
            all(_same_relations(a, b) for a, b in zip(ours, other, strict=True))
            for other in (theirs, turned)
        )
    if not (isinstance(gold, Relational) and isinstance(given, Relational)):
        return _equal_sets(_solved(gold), _solved(given))
    for other in (given, given.reversed):
        if gold.func is other.func:
            if same(gold.lhs, other.lhs) and same(gold.rhs, other.rhs):
                return True
            if is_assignment_relation(gold) and is_assignment_relation(other):
                continue  # x = 5 is not y = 5, and not x = 6
            if _by_a_factor(gold, other):
                return True
    if gold.free_symbols != given.free_symbols or isinstance(gold, Eq) or isinstance(given, Eq):
        return False
    return _equal_sets(_solved(gold), _solved(given))


def _by_a_factor(gold: Any, given: Any) -> bool:
    """Whether the differences of the sides are one number times each other, positive unless `=`."""
    ours, theirs = ((_exact(each.lhs) - _exact(each.rhs)) for each in (gold, given))
    if not isinstance(ours, Expr) or not isinstance(theirs, Expr) or theirs == 0 or ours == 0:
        return False
    values = _at_points(ours / theirs)
    if values is None or len(values) < 3 or any(not _close(v, values[0]) for v in values[1:]):
        return False
    return bool(values[0] != 0 and (gold.rel_op in ("==", "!=") or values[0] > 0))


def _equal_sets(gold: Any, given: Any) -> bool:
    if not (isinstance(gold, Set) and isinstance(given, Set)):
        return False
    if gold == given:
        return True
    try:
        return bool(gold.symmetric_difference(given).is_empty)
    except Exception:  # noqa: BLE001  # SymPy raises anything where it cannot tell
        return False


def _same_collections(gold: Any, given: Any) -> bool:
    """Intervals by their ends; what is a tuple in its order; sets and unions in any."""
    if isinstance(gold, Interval) and isinstance(given, Interval):
        return (
            (gold.left_open, gold.right_open) == (given.left_open, given.right_open)
            and same(gold.start, given.start)
            and same(gold.end, given.end)
        )
    if isinstance(gold, Union) and isinstance(given, Union):
        return _matched(gold.args, given.args) or _equal_sets(gold, given)
    ours, theirs = _elements(gold, given), _elements(given, gold)
    if ours is None or theirs is None:
        return _equal_sets(gold, given)
    if isinstance(gold, (Tuple, Interval)) or isinstance(given, Interval):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return _matched(ours, theirs)


def _elements(group: Any, beside: Any) -> list[Any] | None:
    """Elements in the order as written; (a, b) beside a list of two is no interval."""
    if isinstance(group, UnsortedSet):
        return list(getattr(group, "_unsorted_args", group.args))
    if isinstance(group, (FiniteSet, Tuple)):
        return list(group.args)
    if isinstance(group, Interval):
        pair = group.is_open and isinstance(beside, (FiniteSet, Tuple)) and len(beside) == 2
        return [group.start, group.end] if pair else None
    return None if isinstance(group, Set) else [group]


def _matched(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether each has a partner of its own on the other side."""
    left = list(theirs)
    for one in ours:
        partner = next((place for place, other in enumerate(left) if same(one, other)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def _same_expressions(gold: Any, given: Any) -> bool:
    """Numbers and formulas, with what a percent sign may mean."""
    part, other = get_pct_val(gold), get_pct_val(given)
    if part is not None and other is not None:
        return same(part, other)
    if part is not None:
        return same(part, given) or same(part / Integer(100), given)
    if other is not None:
        return same(gold, other) or same(gold, other / Integer(100))
    symbols = isinstance(gold, Symbol) or isinstance(given, Symbol)
    if symbols and sympy_compare_symbols(gold, given):
        return True
    if gold.is_number and given.is_number:
        return _same_numbers(gold, given)
    return _same_functions(gold, given)


def _same_numbers(gold: Any, given: Any) -> bool:
    powers = isinstance(gold, Pow) and isinstance(given, Pow) and gold.base == given.base
    if powers and gold.base.is_positive and gold.base != 1:
        return same(gold.exp, given.exp)  # however tall the tower
    if max(_bits(gold), _bits(given)) > HUGE:
        return False
    slack = max(_slack(gold), _slack(given))
    ours, theirs = _exact(gold).doit(), _exact(given).doit()
    if ours == theirs:
        return True
    if not (ours.is_Rational and theirs.is_Rational):
        slack = max(slack, SAME)
        ours, theirs = ours.evalf(DIGITS), theirs.evalf(DIGITS)
    return _close(ours, theirs, slack)


def _same_functions(gold: Any, given: Any) -> bool:
    """Whether two formulas have the same values at the points."""
    if gold.has(*_UNSURE) or given.has(*_UNSURE):
        return bool(sympy_expr_eq(gold, given, float_rounding=DIGITS, numeric_precision=DIGITS))
    slack = max(_slack(gold), _slack(given), SAME)
    ours, theirs = _exact(gold), _exact(given)
    symbols = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    compared = 0
    for point in range(len(POINTS)):
        at = _point(symbols, point)
        left, right = ours.evalf(DIGITS, subs=at), theirs.evalf(DIGITS, subs=at)
        if not (left.is_number and right.is_number) or not (left.is_finite and right.is_finite):
            continue
        if POINTS[point][0] < 0 and not (left.is_real and right.is_real):
            continue  # outside the domain: √(1/n) is 1/√n for n > 0
        if not _close(left, right, slack):
            return False
        compared += 1
    return compared >= 2


def _at_points(ratio: Any) -> list[Any] | None:
    """The values of a formula at the points where it has one; None where it has none."""
    if ratio.has(*_UNSURE):
        return None
    symbols = sorted(ratio.free_symbols, key=str)
    values = [ratio.evalf(DIGITS, subs=_point(symbols, at)) for at in range(len(POINTS))]
    return [value for value in values if value.is_number and value.is_finite and value.is_real]


def _point(symbols: Sequence[Any], number: int) -> dict[Any, Any]:
    """Values of the symbols, another for each."""
    over, under = POINTS[number]
    return {s: Rational(over * (3 * n + 7), under * (2 * n + 7)) for n, s in enumerate(symbols)}


def _close(left: Any, right: Any, slack: Any = SAME) -> bool:
    """Whether two numbers differ by less than a share of the smaller."""
    if left == right:
        return True
    if not (left.is_finite and right.is_finite):
        return False
    if _is_zero(left) or _is_zero(right):
        return _is_zero(left) and _is_zero(right)
    return bool(abs(left - right) < slack * min(abs(left), abs(right)))


def _is_zero(number: Any) -> bool:
    """Zero, or computed to no digit: all that was there has cancelled."""
    return number == 0 or (isinstance(number, Float) and number._prec == 1)


def _exact(expression: Any) -> Any:
    """With each decimal as the fraction that was written."""
    return expression.xreplace({each: Rational(_written(each)) for each in expression.atoms(Float)})


def _written(number: Any) -> str:
    """A decimal as it was written, but for zeros at its end."""
    return str(Decimal(str(number)).normalize())


def _slack(expression: Any) -> Any:
    """The share by which what was rounded to the decimals of an expression may differ."""
    decimals = [Decimal(_written(each)).as_tuple() for each in expression.atoms(Float)]
    if not decimals:
        return Integer(0)
    digits, first = min((len(each.digits), each.digits) for each in decimals)
    if digits < ROUNDED or any(int(each.exponent) >= 0 for each in decimals):
        return NOISE
    bare = isinstance(expression, (Float, Mul))
    leading = Rational(int("".join(map(str, first))), 10 ** (digits - 1)) if bare else Integer(10)
    return Rational(1, 10 ** (digits - 1)) / leading


def _bits(number: Any) -> float:
    """About the bits of a number that is not computed yet; at least those of its largest part."""
    if isinstance(number, Rational):
        return float(max(abs(number.p).bit_length(), number.q.bit_length()))
    if isinstance(number, Float):
        return float(abs(Decimal(str(number)).adjusted()) * log2(10) + 1)
    parts = [_bits(part) for part in number.args]
    if isinstance(number, Pow):
        return parts[0] * 2.0 ** min(parts[1], 100) if number.exp.is_number else inf
    if isinstance(number, factorial):
        return (
            inf if parts[0] > 40 else 2.0 ** parts[0] * max(1.0, log2(max(parts[0], 1)) + parts[0])
        )
    return sum(parts) if isinstance(number, Mul) else max(parts, default=1.0)
