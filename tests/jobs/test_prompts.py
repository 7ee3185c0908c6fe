"""Prompt templates: what a row's values look like in them, and what they cannot do."""

from __future__ import annotations

import datetime as dt
import json
import re
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domyn_swarm import ChatCompletionJob, TemplateJob
from domyn_swarm.batch.input.row_keys import RowKeys
from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.jobs.builtin.prompts import PromptTemplate
from domyn_swarm.jobs.builtin.render_limits import MOST_CHARACTERS, MOST_STEPS, TooMuch
from domyn_swarm.jobs.preparation import prepare
from model_server import Bench


class Written(float):
    """A number that knows how its file wrote it, as those of JSON Lines do."""

    def __new__(cls, text: str) -> Written:
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text


def literal(name: str) -> str:
    return msgspec.json.encode(name).decode()


def rendered(text: str, row: dict[str, Any]) -> str:
    return PromptTemplate(text, "prompt").render(row)


MOMENT = dt.datetime(2024, 1, 5, 10, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("text", "row", "prompt"),
    [
        # what an object holds comes before what Python's objects have
        ("{{ order.items }}, {{ order.no }}", {"order": {"items": ["x"], "no": 1}}, '["x"], 1'),
        ("{{ d.keys }}{{ d.copy }}{{ d['get'] }}", {"d": {"keys": 1, "copy": 2, "get": 3}}, "123"),
        # columns that are called like something of Jinja's
        ("{{ range }} {{ q }}", {"range": 5, "q": "x"}, "5 x"),
        (
            "{{ self }}{{ dict }}{{ lipsum }}{{ cycler }}{{ joiner }}{{ namespace }}{{ loop }}",
            {
                "self": 1,
                "dict": 2,
                "lipsum": 3,
                "cycler": 4,
                "joiner": 5,
                "namespace": 6,
                "loop": 7,
            },
            "1234567",
        ),
        # columns of any name
        (
            "{{ row['user.name'] }}{{ row['2nd'] }}{{ row[\"Input Column\"] }}{{ row.q }}",
            {"user.name": 1, "2nd": 2, "Input Column": 3, "q": 4},
            "1234",
        ),
        ("{{ row }}{{ row.row }}{{ row['_row'] }}", {"row": "a", "_row": "b"}, "aab"),
        ("{% for row in rows %}{{ row.x }},{% endfor %}", {"rows": [{"x": 1}, {"x": 2}]}, "1,2,"),
        ("{{ r['k'][0:2] }}{{ r.k[-1] }}", {"r": {"k": [1, 2, 3]}}, "[1,2]3"),
        # numbers as they were written, truth as JSON has it, lists and objects as JSON
        ("{{ v }} {{ v ~ '' }} {{ v | string }}", {"v": Written("3.10")}, "3.10 3.10 3.10"),
        ("{{ v }}", {"v": [Written("1e5"), {"k": Written("2.50")}]}, '[1e5,{"k":2.50}]'),
        ("{{ v }} {{ [v] }}", {"v": Written("-1e400")}, "-1e400 [-1e400]"),
        ("{{ v * 2 }} {{ '%.2f' % v }}", {"v": Written("1.250")}, "2.5 1.25"),
        ("{{ v }} {{ w }}", {"v": 3.0, "w": 17915699055171962697}, "3.0 17915699055171962697"),
        ("{{ v }} {{ v | upper }} {{ v ~ 1 }}", {"v": True}, "true TRUE true1"),
        ("{{ v }}", {"v": [True, None, "é", {"a": []}]}, '[true,null,"é",{"a":[]}]'),
        ("{{ [v | e, v] }}", {"v": "<"}, '["&lt;","<"]'),
        ("{{ v | tojson }}", {"v": {"k": "<é>"}}, '{"k":"<é>"}'),
        ("{{ v | tojson(indent=1) }}", {"v": [Written("1.0")]}, "[\n 1.0\n]"),
        ("{{ v }} {{ w }}", {"v": MOMENT, "w": Decimal("1.10")}, f"{MOMENT} 1.10"),
        ("{{ v }}", {"v": [dt.date(2024, 1, 5), Decimal("1.10")]}, '["2024-01-05",1.10]'),
        # what is missing, where the template says what it stands for
        ("{{ v or '-' }}{{ v | default('+') }}{{ v | d }}", {"v": None}, "-+"),
        ("{{ v or '-' }}{{ v | default('+') }}", {"v": float("nan")}, "-+"),
        ("{{ v | default('-', true) }}{{ w.k | default('+') }}", {"v": "", "w": {}}, "-+"),
        (
            "{% if v is none %}none{% endif %}{{ l }}",
            {"v": float("nan"), "l": [float("nan")]},
            "none[null]",
        ),
        ("{% for one in l %}{{ one or '-' }}{% endfor %}", {"l": [1.5, float("nan")]}, "1.5-"),
        # lists of the template's own
        (
            "{{ [v, 1] }}{{ {'k': v} }}{{ (v, 'é') }}",
            {"v": Written("2.50")},
            '[2.50,1]{"k":2.50}[2.50,"é"]',
        ),
        ("{{ [v, w] | select | join('-') }}", {"v": None, "w": "b"}, "b"),
        ("{{ [v, l] | tojson }}{{ [l] }}", {"v": None, "l": [None]}, "[null,[null]][[null]]"),
        (
            "{% if v in [none, 'x'] %}yes{% endif %}{% for k, v in [(1, 2)] %}{{ k }}{% endfor %}",
            {"v": None},
            "yes1",
        ),
        # filters, tests and what else Jinja has
        ("{{ l | join(', ') }}", {"l": ["a", 1, True, Written("2.50")]}, "a, 1, true, 2.50"),
        ("{{ l | map('upper') | join }}", {"l": ["a", "b"]}, "AB"),
        ("{{ l | map(attribute='items') | join }}", {"l": [{"items": 1}, {"items": 2}]}, "12"),
        ("{{ l | join('-', attribute='n') }}", {"l": [{"n": 1}, {"n": True}]}, "1-true"),
        (
            "{% for k, v in o | items %}{{ k }}{{ v }}{{ loop.index }};{% endfor %}",
            {"o": {"a": 1}},
            "a11;",
        ),
        ("{% for k, v in o | dictsort %}{{ k }}{% endfor %}", {"o": {"b": 1, "a": 2}}, "ab"),
        (
            "{% for g in l | groupby('c') %}{{ g.grouper }}:{{ g.list | length }} {% endfor %}",
            {"l": [{"c": 1}, {"c": 1}, {"c": 2}]},
            "1:2 2:1 ",
        ),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(v) }}", {"v": 1}, "<1>"),
        ("{{ '%s and %d' | format(v, 3) }} {{ v | int + 1 }}", {"v": "7"}, "7 and 3 8"),
        ("{{ v | trim | title | replace('A', w) }}", {"v": " a ", "w": 5}, "5"),
    ],
)
def test_how_values_stand_in_a_prompt(text: str, row: dict[str, Any], prompt: str) -> None:
    template = PromptTemplate(text, "prompt")
    assert set(template.columns) == set(row)
    assert template.render(row) == prompt


@pytest.mark.parametrize("missing", [None, float("nan")])
@pytest.mark.parametrize(
    "text",
    [
        *("{{ v }}", "{{ v ~ 'x' }}", "{{ v | upper }}", "{{ v | string }}", "{{ v | int }}"),
        *("{{ '%s' % v }}", "{{ '%s' | format(v) }}", "{{ [v] | join }}", "{{ v | e }}"),
        *("{{ [v] }}", "{{ [1, [v]] }}", "{{ {'k': v} }}", "{{ (v, 1) }}", "{{ [1] + [v] }}"),
        *("{{ 'a' | replace('a', v) }}", "{{ [v] | map('lower') | join }}", "{{ v | urlencode }}"),
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(v) }}",
    ],
)
def test_no_way_makes_words_of_a_null(text: str, missing: Any) -> None:
    with pytest.raises(ValueError, match=r"null \(v\); .* or ''.* default"):
        rendered(text, {"v": missing})


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("{{ v }}", b"x", "bytes cannot stand in a prompt"),
        ("{{ 'x' ~ v }}", b"x", "bytes cannot stand in a prompt"),
        ("{{ v }}", [{"k": b"x"}], "bytes cannot stand in a prompt"),
        ("{{ v | upper }}", b"x", "bytes cannot stand in a prompt"),
        ("{{ v }}", object(), "a object cannot stand in a prompt"),
        ("{{ v | map('upper') }}", ["a"], "end with `| list`"),
        ("{{ v }}", [float("inf")], "an infinite number cannot stand in a prompt"),
        ("{{ v }}", float("inf"), "an infinite number cannot stand in a prompt"),
        ("{{ v ~ '' }}", float("-inf"), "an infinite number cannot stand in a prompt"),
        ("{{ '%s' % v }}", float("-inf"), "an infinite number cannot stand in a prompt"),
        ("{{ v.__class__ }}", [], "a list has no '__class__'"),
        ("{{ v.append }}", [], "a list has no 'append'"),
        ("{{ v['x'] }}", [], "a list has no 'x'"),
        ("{{ v.upper }}", "text", "text has no 'upper'"),
        ("{{ v.no }}", {"number": 1, "name": 2}, "an object has no 'no'; it has: number, name"),
        ("{{ v / 0 }}", 1, "division by zero"),
        ("{{ v > 1 }}", None, "the prompt cannot be made"),
        ("{{ '%d' % v }}", "x", "the prompt cannot be made"),
    ],
)
def test_what_is_none_of_rows_is_refused(text: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rendered(text, {"v": value})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ v.items() }}", r"calls items\(\) in line 1.*\n.*\| items"),
        ("\n{{ v.strip() }}", r"calls strip\(\) in line 2.*\n.*\| trim"),
        ("{{ v.append(1) }}", r"calls append\(\)"),
        ("{% for i in range(3) %}{{ v }}{% endfor %}", r"calls range\(\)"),
        ("{{ super() }}{{ v }}", r"calls super\(\)"),
        ("{% include 'other' %}{{ v }}", "refers to another template in line 1"),
        ("{{ v | attr('x') }}", "No filter named 'attr'"),
        ("{% for row in v %}{% endfor %}{{ row.x }}", "`row` for the row and for a variable"),
        ("{{ Input Column }}", r'any name.*\{\{ row\["Input Column"\] \}\}'),
        ("{{ 2nd }}", r'any name.*\{\{ row\["2nd"\] \}\}'),
        ("{{ v", r'\{\{ row\["any name"\] \}\}'),
    ],
)
def test_templates_that_ask_for_what_no_row_has(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        PromptTemplate(text, "prompt")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{{ prmpt }}", r"Did you mean \{\{ prompt \}\}\?"),
        ("{{ user.name }}", r'Did you mean \{\{ row\["user\.name"\] \}\}\?'),
        ("{{ Input }}", r'Did you mean \{\{ row\["Input Column"\] \}\}\?'),
        ("{{ row['zzz'] }}", "It has: prompt, user.name, Input Column"),
    ],
)
def test_a_column_that_is_not_there_is_found_before_a_row_is_asked(
    bench: Bench, text: str, hint: str
) -> None:
    names = ["prompt", "user.name", "Input Column"]
    pq.write_table(pa.table({name: ["x"] for name in names}), bench.folder / "in.parquet")
    job = {"job": "domyn_swarm.jobs:TemplateJob", "input_columns": ()}
    with pytest.raises(InvalidInput, match=f"prompt template uses the column .*\n{hint}"):
        prepare(bench.spec(**job, job_kwargs={"prompt": text}))
    with pytest.raises(InvalidInput, match="system template uses the column 'mood'"):
        prepare(bench.spec(**job, job_kwargs={"prompt": "{{ prompt }}", "system": "{{ mood }}"}))
    with pytest.raises(InvalidInput, match="Did you mean 'prompt'"):
        prepare(bench.spec(input_columns=("promt",)))
    assert bench.server.bodies == []


LONG = list(range(3000))
TWICE = "{% set s = s + s %}"


@pytest.mark.parametrize(
    ("text", "value", "makes"),
    [
        ("{{ 'x' * 10**9 }}{{ v }}", 1, "steps of its loops or"),
        ("{{ v }}{{ [v] * 10**9 }}", 1, "characters of one row"),
        ("{{ v ** v ** v }}", 99, "an integer of more than 4,300 digits"),
        ("{{ v * v }}", 10**4000, "an integer of more than 4,300 digits"),
        ("{{ 'x' | center(10**9) }}{{ v }}", 1, "characters of one row"),
        ("{{ v | indent(10**9, true) }}", "a", "characters of one row"),
        ("{{ v | replace('a', 'b' * 10**6) }}", "a" * 1000, "characters of one row"),
        ("{{ v | wordwrap(1, wrapstring='b' * 10**6) }}", "a" * 1000, "characters of one row"),
        ("{{ v | join('b' * 10**6) }}", LONG, "characters of one row"),
        ("{{ v | batch(10**9, 'x') | list }}", [1], "characters of one row"),
        ("{{ v | slice(10**9) | list }}", [1], "characters of one row"),
        ("{{ v | round(-10**9) }}", 5, "-1,000,000,000 digits"),
        ("{{ v | tojson(indent=10**9) }}", [5], "indented by 1,000,000,000"),
        ("{{ '%1000000000d' % v }}", 1, "characters of one row"),
        ("{{ '%*d' % (v, 3) }}", 10**9, "characters of one row"),
        ("{{ '%.1000000000f' | format(v) }}", 1, "characters of one row"),
        (
            "{% for a in v %}{% for b in v %}{% endfor %}{% endfor %}",
            LONG,
            "262,144 steps of its loops",
        ),
        (
            "{% for a in v[0:40] %}" + "a long text " * 300000 + "{% endfor %}",
            LONG,
            "characters of one row",
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
            "{{ f(v) }}",
            40,
            "262,144 steps",
        ),
        ("{% set s = v %}" + TWICE * 40 + "{{ s }}", "abc", "characters of one row"),
        ("{% set s = [v] %}" + TWICE * 40 + "{{ s }}", 1, "characters of one row"),
        (
            "{% set s = v %}" + "{% set s = s ~ s %}" * 40 + "{{ s }}",
            "abc",
            "characters of one row",
        ),
        ("{% set s = [v] %}" + "{% set s = [s, s] %}" * 40 + "{{ s }}", 1, "characters of one row"),
        (
            "{% set s = v %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 40 + "{{ s }}",
            "abc",
            "characters of one row",
        ),
    ],
)
def test_a_template_that_does_too_much_is_told_and_not_waited_for(
    text: str, value: Any, makes: str
) -> None:
    with pytest.raises(TooMuch, match=f"the system template makes .*{re.escape(makes)}"):
        PromptTemplate(text, "system").render({"v": value})


@pytest.mark.parametrize(
    ("text", "value", "characters"),
    [
        ("{{ v }}{{ v | trim }}", "x" * (MOST_CHARACTERS + 1), 2 * MOST_CHARACTERS + 2),
        ("{% for one in v %}.{% endfor %}", [1] * (MOST_STEPS + 1), MOST_STEPS + 1),
        ("{% for one in v %}{{ one.t }}{% endfor %}", [{"t": "ab"}] * 100_000, 200_000),
        ("{{ v }}", 10**4299, 4300),
    ],
)
def test_rows_of_any_size_become_prompts(text: str, value: Any, characters: int) -> None:
    """What a row holds is no work of the template's, and the larger it is, the longer the loops."""
    assert len(rendered(text, {"v": value})) == characters


@pytest.mark.parametrize(
    "text", ["{{" + "(" * 3000 + "v" + ")" * 3000 + "}}", "{{ v" + " + 1" * 3000 + "}}"]
)
def test_a_template_that_is_nested_too_deep(text: str) -> None:
    with pytest.raises(ConfigError, match="prompt template is nested too deep"):
        PromptTemplate(text, "prompt")


def test_a_template_that_does_too_much_for_all_rows_is_refused(bench: Bench) -> None:
    """Where it is one row's, that row alone fails."""
    job = {"job": "domyn_swarm.jobs:TemplateJob", "input_columns": ()}
    kwargs = {"prompt": "{% for a in v %}{% for b in v %}{{ a }}{% endfor %}{% endfor %}"}
    for lists, refused in (([LONG] * 20, True), ([LONG, [1], [2]], False)):
        pq.write_table(pa.table({"v": lists}), bench.folder / "in.parquet")
        spec = bench.spec(**job, job_kwargs=kwargs)
        if refused:
            with pytest.raises(
                ConfigError, match=r"The prompt template makes more than .*first rows"
            ):
                prepare(spec)
        else:
            assert prepare(spec).rows == 3
    assert bench.server.bodies == []


def test_numbers_of_single_precision_are_those_that_were_written() -> None:
    single = pa.array([0.1, 3.0, None], pa.float32())
    nested = pa.array([{"n": [0.7], "t": "x"}, None, {"n": None, "t": "y"}], NESTED)
    batch = pa.RecordBatch.from_arrays([single, nested], names=["v", "o"])
    rows = RowKeys(("v", "o"), None).items(batch)
    assert rendered("{{ v }} {{ o }}", rows[0]) == '0.1 {"n":[0.7],"t":"x"}'
    assert [row["v"] for row in rows] == [0.1, 3.0, None]


NESTED = pa.struct([("n", pa.list_(pa.float32())), ("t", pa.string())])
words = st.text(max_size=5)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(name=words.filter(bool), value=values)
def test_any_value_under_any_name(name: str, value: Any) -> None:
    """Lists and objects are JSON that means the same; text is itself."""
    shown = rendered(f"{{{{ row[{literal(name)}] | tojson }}}}", {name: value})
    assert json.loads(shown) == value
    if isinstance(value, str):
        assert rendered(f"{{{{ row[{literal(name)}] }}}}", {name: value}) == value


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("The question about {{ document }} is: {{ question }}", ["document", "question"]),
        ("{{ question }}: {{ document }}, {{ question }}", ["question", "document"]),
        ("{% if long %}{{ document }}{% endif %} {{ a }}", ["long", "document", "a"]),
        ('{{ row["two words"] }} {{ words | trim }}', ["two words", "words"]),
    ],
)
def test_columns_are_known_in_the_order_of_the_text(text: str, columns: list[str]) -> None:
    """By it rows that begin alike are asked one after the other."""
    assert PromptTemplate(text, "prompt").columns_in_order == columns


def test_what_a_request_holds_of_a_row_and_in_which_order() -> None:
    job = TemplateJob(
        prompt="{{ b }} {{ a }}", system="{{ z }} {{ b }}", param_columns={"temperature": "heat"}
    )
    assert tuple(job.sent_columns) == ("z", "b", "a")
    assert tuple(ChatCompletionJob(input_columns="text", system="Be {{ mood }}.").sent_columns) == (
        *("mood", "text"),
    )
