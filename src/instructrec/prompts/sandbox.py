"""Running a Jinja prompt template that may come from a stranger's model folder.

A template can be hostile in two ways. It can reach for Python (`__class__`, attribute walks): refused by Jinja's
`ImmutableSandboxedEnvironment`, narrowed to lists of what prompt templates use. Or it can eat the machine (loops in
loops, a string doubled sixty times, a list that holds itself twice): every rendering has a budget of work, and before
anything runs the syntax tree is rewritten so that each loop step, joined string, comparison and output is paid for.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ..errors import InputError

SOURCE_CAP = 200_000  # characters of a template; the longest in the wild have a tenth of that
OUTPUT_CAP = 8_000_000  # characters one rendering may produce
WORK_CAP = 50_000_000  # units of work of one rendering: a character handled is 1, an item 100, a loop step 10 a node
_ITEM, _NODE = 100, 10
_DEPTH = 32  # of lists in lists

# What prompt templates in the wild use. Left out on purpose: `attr` (walks objects), `format`, `center`, `indent`,
# `slice`, `sum`, `round` (a small number makes them produce a lot), `pprint`, `xmlattr`, `random`.
_FILTER_NAMES = """abs capitalize count d default dictsort e escape first float int items join last length list lower
map max min reject rejectattr replace reverse safe select selectattr sort string title tojson trim unique upper"""
_STRING_METHODS = """capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper join lower
lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith
strip title upper"""
_FILTERS = frozenset(_FILTER_NAMES.split())
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STRING_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
}
_STATEMENTS_REFUSED = (
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Extends,
    nodes.Block,
    nodes.EvalContextModifier,
)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))

_work: ContextVar[list[int]] = ContextVar("work")  # one number: what is left of the budget of this rendering


def _pay(units: int) -> None:
    left = _work.get()
    left[0] -= units
    if left[0] < 0:
        raise SecurityError("more work than a prompt template may do (loops, or text that grows)")


def _pay_for(value: Any, depth: int = 0) -> None:
    """Pay for all that `value` would be if it was written out: a list held twice is there twice."""
    if isinstance(value, str):
        _pay(len(value) + 1)
    elif isinstance(value, (list, tuple, dict, Namespace, *_VIEWS)):
        if depth > _DEPTH:
            raise SecurityError(f"values nested more than {_DEPTH} deep")
        inside: Any = object.__getattribute__(value, "_Namespace__attrs") if isinstance(value, Namespace) else value
        for item in inside.items() if isinstance(inside, dict) else inside:
            _pay(_ITEM)
            _pay_for(item, depth + 1)
    else:
        _pay(1)


def _size(value: Any) -> int:
    return len(value) + 1 if hasattr(value, "__len__") else 1


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    macro_nodes = 0  # nodes of the template's largest macro, set once it is parsed

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sides = (left, right)
        numbers = all(isinstance(side, (int, float)) for side in sides)
        if operator == "+" and not numbers:
            for side in sides:
                _pay_for(side)
        elif operator == "**" or not numbers or max(abs(side) for side in sides) >= 2**64:
            raise SecurityError(f"'{operator}' of {type(left).__name__} and {type(right).__name__} is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _pay(_ITEM + self.macro_nodes * 10 * _NODE if isinstance(obj, Macro) else _ITEM)
        _pay_for([*args, *kwargs.values()])
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            _pay_for(owner)
            if obj.__name__ in ("join", "replace"):  # the two that can return more than they were given
                _pay(_size(owner) * sum(_size(arg) for arg in args))
        return super().call(context, obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        known = isinstance(obj, (LoopContext, Macro, Namespace, Undefined))
        return known and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        kind = type(obj).__name__
        raise SecurityError(f"attribute '{attribute}' of a value of type {kind} is not allowed in a prompt template")

    def wrap_str_format(self, value: Any) -> None:
        return None  # str.format is refused like any method that is not listed


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words in some templates; where they stand is found out here anyway."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Metered(NodeTransformer):
    """Rewrites a syntax tree so that work is paid for while it runs; counts nodes on the way."""

    count = 0
    macro_nodes = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return super().visit(node, *args, **kwargs)

    def _through(self, node: nodes.Node, name: str, *args: int) -> nodes.Filter:
        given = [nodes.Const(arg, lineno=node.lineno) for arg in args]
        return nodes.Filter(node, name, given, [], None, None, lineno=node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [  # constants go through `finalize`, the template's own text would not
            nodes.Const(child.data, lineno=child.lineno) if isinstance(child, nodes.TemplateData) else child
            for child in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._through(nodes.Tuple(node.nodes, "load", lineno=node.lineno), "_concat")

    def visit_For(self, node: nodes.For) -> nodes.Node:
        before = self.count
        self.generic_visit(node)
        node.iter = self._through(node.iter, "_steps", self.count - before)
        return node

    def visit_Macro(self, node: nodes.Macro | nodes.CallBlock) -> nodes.Node:
        before = self.count
        self.generic_visit(node)
        self.macro_nodes = max(self.macro_nodes, self.count - before)
        return node

    visit_CallBlock = visit_Macro

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:  # no comparison takes longer than its right side is long
            operand.expr = self._through(operand.expr, "_paid")
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.args or node.name in ("lower", "upper"):  # the others look at the type only
            node.node = self._through(node.node, "_paid")
            node.args = [self._through(arg, "_paid") for arg in node.args or ()]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._through(node.node, "_copied")
        return node


def _paid(value: Any) -> Any:
    _pay_for(value)
    return value


def _copied(value: Any) -> Any:
    _pay(_size(value))
    return value


def _steps(value: Any, nodes_inside: int) -> Any:
    items = value if hasattr(value, "__len__") else list(value)
    _pay(len(items) * nodes_inside * _NODE)
    return items


def _concat(values: tuple[Any, ...]) -> str:
    _pay_for(values)
    return "".join(map(str, values))


@pass_context
def _output(_: Any, value: Any) -> Any:  # told to take the context, so that Jinja calls it for constants too
    return _paid(value)


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    takes_context = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        value, *rest = args[1:] if takes_context else args
        rest += kwargs.values()
        _pay_for(value)
        _pay_for(rest)
        if name not in ("default", "d"):
            _pay(_size(value) * sum(_size(item) for item in rest))
        result = function(*args, **kwargs)
        return list(result) if isinstance(result, Iterator) else result

    return run


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own tojson escapes <, > and & for HTML, which would change the prompt.
    if indent is not None and not 0 <= int(indent) <= 8 or separators and len("".join(separators)) > 8:
        raise SecurityError("tojson: indent or separators of more than 8 characters")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(str(message))


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > WORK_CAP // _ITEM:
        raise SecurityError(f"a range of more than {WORK_CAP // _ITEM} numbers")
    return numbers


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    attributes = dict(*args, **kwargs)
    if any(str(name).startswith("_") for name in attributes):
        raise SecurityError("a namespace may not hold names that start with '_'")
    return Namespace(attributes)


def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # nothing is computed while compiling, where no budget holds
        finalize=_output,
        extensions=[loopcontrols, _Generation],
    )
    allowed = {name: environment.filters[name] for name in _FILTERS} | {"tojson": _tojson}
    environment.filters = {name: _metered_filter(name, function) for name, function in allowed.items()}
    environment.filters |= {"_paid": _paid, "_copied": _copied, "_steps": _steps, "_concat": _concat}
    environment.globals = {"range": _range, "namespace": _namespace, "dict": dict, "raise_exception": _raise}
    return environment


def _check_tree(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        what = ""
        if isinstance(node, _STATEMENTS_REFUSED):
            what = f"'{type(node).__name__.lower()}'"
        elif isinstance(node, nodes.For) and node.recursive:
            what = "a recursive loop"
        elif isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            what = f"filter '{node.name}'"
        elif isinstance(node, (nodes.Getattr, nodes.NSRef)) and node.attr.startswith("_"):
            what = f"attribute '{node.attr}'"
        if what:
            raise SecurityError(f"line {node.lineno}: {what} is not allowed in a prompt template")


@functools.lru_cache(maxsize=32)
def compile_template(source: str) -> Callable[..., str]:
    """A function of the template's variables that returns its text.

    Whitespace is handled as Hugging Face does for chat templates (`trim_blocks`, `lstrip_blocks`). `strftime_now` is
    left undefined: a prompt that holds today's date would differ between training and serving.

    Raises InputError, naming the line, for a template that does not parse or asks for what is not allowed; the
    returned function raises InputError when the template itself raises (`raise_exception`) or is over its budget.
    """
    if len(source) > SOURCE_CAP:
        raise InputError(f"prompt template: {len(source):,} characters long (want at most {SOURCE_CAP:,})")
    environment = _environment()
    try:
        tree = environment.parse(source)
        _check_tree(tree)
        meter = _Metered()
        metered = meter.visit(tree)
        environment.macro_nodes = meter.macro_nodes
        template = environment.from_string(metered)
    except TemplateSyntaxError as error:
        raise InputError(f"prompt template: line {error.lineno}: {error.message}") from error
    except SecurityError as error:
        raise InputError(f"prompt template: {error}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # from Python's own compiler
        raise InputError(f"prompt template: too deeply nested, or a number too long ({error})") from error

    def render(**variables: Any) -> str:
        budget = _work.set([WORK_CAP])
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.generate(**variables):
                size += len(piece)
                if size > OUTPUT_CAP:
                    raise SecurityError(f"more than {OUTPUT_CAP:,} characters of output")
                pieces.append(piece)
        except TemplateError as error:
            raise InputError(f"prompt template: {error.message or error}") from error
        except RecursionError as error:
            raise InputError("prompt template: a macro that calls itself without end") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise InputError(f"prompt template: {type(error).__name__}: {error}") from error
        finally:
            _work.reset(budget)
        return "".join(pieces)

    return render
