"""Templates from strangers: what reaches for Python or eats the machine is refused, at once, and nothing is written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from instructrec.errors import InputError
from instructrec.prompts.sandbox import OUTPUT_CAP, SOURCE_CAP, compile_template

WORK = "more work than a prompt template may do (loops, or text that grows)"
DEEP = "values nested more than 32 deep"


def refused(what: str) -> str:
    return f"{what} is not allowed in a prompt template"


def grow(start: str, step: str, end: str = "") -> str:
    return "{% set a=" + start + " %}" + ("{% set a=" + step + " %}") * 60 + end


def loops(depth: int, numbers: int, body: str = "") -> str:
    return f"{{% for i in range({numbers}) %}}" * depth + body + "{% endfor %}" * depth


REACHING = {
    "{{ ''.__class__ }}": refused("line 1: attribute '__class__'"),
    "\n{{ messages[0].__class__.__mro__[1].__subclasses__() }}": refused("line 2: attribute '__subclasses__'"),
    "{{ ''['__class__'] }}": refused("attribute '__class__' of a value of type str"),
    "{{ ''['__cla' ~ 'ss__'] }}": refused("attribute '__class__' of a value of type str"),
    "{{ ''|attr('__class__') }}": refused("line 1: filter 'attr'"),
    "{{ ['']|map('attr', '__class__')|list }}": "No filter named 'attr'.",
    "{{ messages|map(attribute='content.__class__')|list }}": refused("attribute '__class__' of a value of type str"),
    "{{ messages|selectattr('__class__')|list }}": refused("attribute '__class__' of a value of type dict"),
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}": refused("line 1: attribute '__globals__'"),
    "{{ raise_exception['__globals__'] }}": refused("attribute '__globals__' of a value of type function"),
    "{{ self._TemplateReference__context }}": refused("line 1: attribute '_TemplateReference__context'"),
    "{% include 'CANARY' %}": refused("line 1: 'include'"),
    "{% import 'CANARY' as x %}": refused("line 1: 'import'"),
    "{% extends 'CANARY' %}": refused("line 1: 'extends'"),
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}": refused("line 1: attribute '__class__'"),
    "{{ namespace(__class__=1) }}": "a namespace may not hold names that start with '_'",
    "{{ dict.mro() }}": refused("attribute 'mro' of a value of type type"),
    "{{ messages.append(1) }}": refused("attribute 'append' of a value of type list"),
    "{{ messages[0].update(role='x') }}": refused("attribute 'update' of a value of type dict"),
    "{{ lipsum(n=100000) }}": "'lipsum' is undefined",
}
EATING = {
    "{{ 'a' * 10**9 }}": "'**' of int and int is not allowed",
    "{{ 'a' * 1000000000 }}": "'*' of str and int is not allowed",
    "{{ '%999999999d' % 1 }}": "'%' of str and int is not allowed",
    "{{ '%s'|format('x') }}": refused("line 1: filter 'format'"),
    "{{ '{:>999999999}'.format(1) }}": refused("attribute 'format' of a value of type str"),
    "{{ '{:>999999999}'['format'](1) }}": refused("attribute 'format' of a value of type str"),
    "{{ 'a'['ljust'](999999999) }}": refused("attribute 'ljust' of a value of type str"),
    "{{ (1).to_bytes(999999999, 'big') }}": refused("attribute 'to_bytes' of a value of type int"),
    "{{ ['a']|map('center', 999999999)|list }}": "No filter named 'center'.",
    "{% filter indent(999999999) %}a\nb{% endfilter %}": refused("line 1: filter 'indent'"),
    "{{ [1]|tojson(indent=999999999) }}": "tojson: indent or separators of more than 8 characters",
    loops(2, 100_000): WORK,
    loops(3, 900): WORK,
    loops(1, 999_999_999_999): "a range of more than 500000 numbers",
    "{{ range(999999999999)|list }}": "a range of more than 500000 numbers",
    "{% for m in messages %}" + "{% for c in m.content %}" * 2 + "{% endfor %}" * 3: WORK,
    loops(1, 400_000, "{{ messages[0].content }}"): f"more than {OUTPUT_CAP:,} characters of output",
    "{% set x %}" + loops(1, 100_000, "b" * 1000) + "{% endset %}": WORK,
    loops(1, 400_000, "{% set a = 1 %}" * 100): WORK,
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}": refused("line 1: a recursive loop"),
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": WORK,
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "a macro that calls itself without end",
    grow("'aa'", "a + a"): WORK,
    grow("'aa'", "a ~ a"): WORK,
    grow("'aa'", "a|replace('a', a)"): WORK,
    grow("'aa'", "a.replace('a', a)"): WORK,
    grow("'aa'", "a|join(a)"): WORK,
    grow("'aa'", "a.join(a)"): WORK,
    grow("[1]", "a + a"): WORK,
    grow("[1]", "[a, a]", "{{ a }}"): DEEP,
    grow("[1]", "[a, a]", "{{ a|tojson }}"): DEEP,
    grow("[1]", "[a, a]", "{{ a == [a] }}"): DEEP,
    "{% set a=[1] %}" + "{% set a=[a, a] %}" * 25 + "{{ a }}": WORK,
    "{% set a=1 %}" + "{% set a=namespace(x=a, y=a) %}" * 25 + "{{ a }}": WORK,
    "{% set n=namespace() %}{% set n.x=n %}{{ n }}": DEEP,
    "{% set n=namespace(a='a') %}" + loops(1, 90, "{% set n.a = n.a ~ n.a %}"): WORK,
    grow("9", "a * a"): "'*' of int and int is not allowed",
}
BROKEN = {
    "{{ 1 // 0 }}": "ZeroDivisionError: integer division or modulo by zero",
    "{% for i in 5 %}{% endfor %}": "TypeError: 'int' object is not iterable",
    "{{ x.y }}": "'x' is undefined",
    "{% for %}": "line 1: Expected an expression, got 'end of statement block'",
    "a\n{% endfor %}": "line 2: Encountered unknown tag 'endfor'.",
    "{{ raise_exception('no system, please') }}": "no system, please",
}


def message_of(source: str) -> str:
    with pytest.raises(InputError) as caught:
        compile_template(source)(messages=[{"role": "user", "content": "x" * 50_000}])
    return str(caught.value)


@pytest.mark.parametrize(("source", "message"), [*REACHING.items(), *EATING.items(), *BROKEN.items()])
def test_traps_are_refused_at_once(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    assert message_of(source) == f"prompt template: {message}"
    assert time.process_time() - started < 1.0
    assert list(tmp_path.iterdir()) == []  # no CANARY


@pytest.mark.parametrize(
    "source", ["{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", loops(30, 1), "{{ " + "9" * 5000 + "}}"]
)
def test_what_breaks_the_compiler_is_refused(source: str) -> None:
    assert message_of(source).startswith("prompt template: too deeply nested, or a number too long (")


def test_a_template_too_long_to_be_one_is_refused() -> None:
    assert message_of("x" * (SOURCE_CAP + 1)) == "prompt template: 200,001 characters long (want at most 200,000)"


def test_each_rendering_has_its_own_budget() -> None:
    run = compile_template("{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}")
    messages = [{"role": "user", "content": "x" * 200_000}]
    for _ in range(8):
        assert run(messages=messages) == "x" * 200_000


def test_the_given_values_are_left_as_they_were() -> None:
    messages = [{"role": "user", "content": "x"}]
    compile_template("{% for m in messages %}{% set m = {'role': 'y'} %}{% endfor %}")(messages=messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_what_templates_use_works_as_in_transformers() -> None:
    source = """\
{%- macro show(m) -%}[{{ m.role }}: {{ m['content'] | trim }}]{%- endmacro -%}
{%- set ns = namespace(seen=0, text='') -%}
{%- for m in messages[::-1] -%}
  {%- if m.role is not defined or m.content is not string -%}{{ raise_exception('bad') }}{%- endif -%}
  {%- if loop.first and 'x' in m.content and m.tool_calls is not defined -%}
    {%- set ns.seen = ns.seen + 1 -%}
  {%- endif -%}
  {%- set ns.text = ns.text ~ show(m) -%}
  {%- if loop.index0 == 5 -%}{%- break -%}{%- endif -%}
{%- endfor -%}
{{ ns.text }}|{{ ns.seen }}|{{ messages | map(attribute='role') | join(', ') }}|{{ messages | length }}
{%- generation %} {{ {'a': '<é>'} | tojson }}{% endgeneration %}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ (messages | last).role.upper() }}
{%- for key, value in messages[0].items() %} {{ key }}={{ value }}{% endfor %}
{%- filter upper %} done{% endfilter %} {{ 7 % 4 }} {{ 3 * 4 }} {{ none_such | default('d') }} {{ loop is defined }}"""
    messages = [{"role": "user", "content": " a x "}, {"role": "assistant", "content": "x"}]
    out = compile_template(source)(messages=messages)
    assert out == (
        '[assistant: x][user: a x]|1|user, assistant|2 {"a": "<é>"}1ASSISTANT role=user content= a x  DONE 3 12 d False'
    )


def test_a_long_conversation_is_within_the_budget() -> None:
    from prompt_cases import chat, renderer

    texts = ["where is my parcel " * 20, "it is on its way " * 20] * 40
    for kind in ("llama", "qwen", "gemma", "llama3"):
        assert len(renderer(kind, "model").render(chat(*texts, "end")).ids) > 10_000
