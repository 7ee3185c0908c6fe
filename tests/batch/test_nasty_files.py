"""Our readers beside others, over what generators come up with: the same rows, or refused."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from domyn_swarm.batch.column_values import json_texts, python_values
from domyn_swarm.batch.input.opening import open_dataset
from domyn_swarm.batch.input.text_dataset import row_column_of
from domyn_swarm.batch.output.text_forms import FORMS
from domyn_swarm.errors import InvalidInput
from domyn_swarm.jobs.worker import main
from model_server import Answer

# `tmp_path` is one folder for all examples: each writes the same file anew.
examples = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Each example is a job: a smaller one is not looked for, which takes minutes.
whole_jobs = settings(
    max_examples=3,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)
CELL = st.text(st.sampled_from("\",;\t\r\n\\ ab'é\u2028\x00#=0"), max_size=6) | st.text(max_size=4)


def read(path: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    dataset = open_dataset(str(path))
    rows: list[tuple[Any, ...]] = []
    for batch in dataset.batches():
        rows += zip(*map(python_values, batch.columns), strict=True)
    return dataset.schema.names, rows


def exactly(rows: Any) -> str:
    """Rows in a form that tells 3 from 3.0 and true from 1, as `==` does not."""
    return json.dumps(rows)


@examples
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n))))
def test_whatever_csv_writes_comes_back_cell_for_cell(
    tmp_path: Path, rows: list[list[str]]
) -> None:
    names = [f"c{n}" for n in range(len(rows[0]) if rows else 1)]
    path = tmp_path / "in.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    assert read(path) == (names, [tuple(row) for row in rows])
    form = FORMS["csv"]
    batches = list(open_dataset(str(path)).batches())
    schema = pa.schema([(name, pa.string()) for name in names])
    written = form.head(schema) + b"".join(form.body(batch) for batch in batches)
    text = io.StringIO(written.decode(), newline="")
    assert list(csv.reader(text)) == [names, *rows]


@examples
@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=4), min_size=1))
def test_whatever_json_writes_is_that_rows_own(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "in.jsonl"
    ascii_too = [json.dumps(row, ensure_ascii=bool(n % 2)) for n, row in enumerate(rows)]
    path.write_text("\n".join(ascii_too), encoding="utf-8")
    dataset = open_dataset(str(path))
    names = list(dict.fromkeys(key for row in rows for key in row))
    assert dataset.schema.names == names
    told = [tuple(row.get(name) for name in names) for row in rows] if names else []
    assert exactly(read(path)[1]) == exactly(told)
    row_column = row_column_of(dataset)
    assert row_column is not None
    texts = [
        text for batch in dataset.batches([row_column]) for text in json_texts(batch.column(0))
    ]
    assert texts == ascii_too


@whole_jobs
@given(st.lists(JSON, min_size=60, max_size=60))
def test_any_json_is_sent_and_written_as_it_is(bench: Any, values: list[Any]) -> None:
    lines = [json.dumps({"prompt": f"p{n}", "v": value}) for n, value in enumerate(values)]
    (bench.folder / "in.jsonl").write_text("\n".join(lines))
    bench.server.bodies.clear()
    spec = bench.spec(
        input=str(bench.folder / "in.jsonl"),
        output=str(bench.folder / "out.jsonl"),
        job_kwargs={"param_columns": {"metadata": "v"}},
        checkpointing=False,
    )
    assert main([str(bench.job_folder(spec))]) == 0
    sent = {body["messages"][0]["content"]: body.get("metadata") for body in bench.server.bodies}
    assert [exactly(sent[f"p{n}"]) for n in range(len(values))] == list(map(exactly, values))
    written = (bench.folder / "out.jsonl").read_text().splitlines()
    answers = [f',"answer":"P{n}"}}' for n in range(len(values))]
    assert written == [line[:-1] + more for line, more in zip(lines, answers, strict=True)]


NUMBER = st.from_regex(
    r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-2]?[0-9]{1,2})?", fullmatch=True
)


@whole_jobs
@given(st.lists(NUMBER, min_size=60, max_size=60))
def test_any_number_is_asked_and_written_as_it_stands(bench: Any, numbers: list[str]) -> None:
    """No two that are written in two ways share a request, though equal ones do."""
    lines = [f'{{"v": {number}, "l": [{number}]}}' for number in numbers]
    (bench.folder / "in.jsonl").write_text("\n".join(lines))
    bench.server.behave = lambda _prompt, _nth: Answer(text="ok")
    bench.server.bodies.clear()
    spec = bench.spec(
        job="domyn_swarm.jobs:TemplateJob",
        input=str(bench.folder / "in.jsonl"),
        output=str(bench.folder / "out.jsonl"),
        input_columns=(),
        job_kwargs={"prompt": "{{ v }} {{ l }}"},
        dedup="always",
        checkpointing=False,
    )
    assert main([str(bench.job_folder(spec))]) == 0
    asked = [body["messages"][0]["content"] for body in bench.server.bodies]
    shown = ["0" if number == "-0" else number for number in numbers]  # as Python has it
    assert sorted(asked) == sorted({f"{number} [{number}]" for number in shown})
    written = (bench.folder / "out.jsonl").read_text().splitlines()
    assert written == [line[:-1] + ',"answer":"ok"}' for line in lines]


@whole_jobs
@given(st.lists(st.tuples(CELL, CELL), min_size=60, max_size=60))
def test_any_csv_is_asked_and_written_cell_for_cell(
    bench: Any, cells: list[tuple[str, str]]
) -> None:
    """Through a whole job: what the prompt has is the cell, and so is what the output has."""
    source, target = bench.folder / "in.csv", bench.folder / "out.csv"
    rows = [(str(n), *pair) for n, pair in enumerate(cells)]
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("n", "a", "b"), *rows])
    bench.server.behave = lambda _prompt, _nth: Answer(text="ok")
    bench.server.bodies.clear()
    spec = bench.spec(
        job="domyn_swarm.jobs:TemplateJob",
        input=str(source),
        output=str(target),
        input_columns=(),
        job_kwargs={"prompt": "{{ n }}|{{ a }}|{{ b }}"},
        checkpointing=False,
    )
    assert main([str(bench.job_folder(spec))]) == 0
    asked = [body["messages"][0]["content"] for body in bench.server.bodies]
    assert sorted(asked) == sorted("|".join(row) for row in rows)
    with target.open(newline="", encoding="utf-8") as file:
        names, *written = csv.reader(file)
    assert [tuple(row[:3]) for row in written] == rows
    assert (names[:3], {row[3] for row in written}) == (["n", "a", "b"], {"ok"})


# -- beside other readers ------------------------------------------------------------------------

CSV_PIECES = [
    *('"', '""', ",", "\n", "\r\n", "\r", "a", "b1", " ", "\t", ";", "é", "\x00", "'", "\\", "#"),
    *(
        '"a,b"',
        '"x\ny"',
        '"q""q"',
        ',"',
        '",',
        "\n\n",
        "NA",
        "1e5",
        "00",
        "\ufeff",
        '"a"b',
        "\u2028",
    ),
]
JSON_PIECES = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"a"',
        '"b"',
        '"a":',
        '"b":1',
        "1",
        "-0",
        "1.50",
        "1e400",
        "NaN",
    ),
    *("true", "null", "\n", "\r\n", " ", '"\\ud800"', '"\\ud83d\\ude00"', "18446744073709551617"),
    *('{"a":1}', '{"a":1,"a":2}', '{"b":[1,{}]}\n', '"é"', "\ufeff", "\x00", "01", '{"a":"x"}\n'),
]
HARMS = ["NaN", '"\\ud800"', "1e400", "01", "123456789012345678901234567890"]


def nasty(pieces: list[str], seed: int) -> str:
    choose = random.Random(seed)
    return "".join(choose.choice(pieces) for _ in range(choose.randint(1, 14)))


def nasty_lines(seed: int) -> str:
    """Mostly objects, with here and there a piece that may break them."""
    choose = random.Random(seed)
    values = ["1", "-0", "1.50", "2e3", "null", "[]", "{}", '"é"', '"\\u0000"', '"x"', *HARMS]
    lines = []
    for _ in range(choose.randint(1, 3)):
        members = [
            f'"{choose.choice("abé")}"{choose.choice((":", " : "))}{choose.choice(values)}'
            for _ in range(choose.randint(0, 3))
        ]
        lines.append("{" + ",".join(members) + "}" + choose.choice(("", " ", "\r", "\n")))
    if seed % 3 == 0:
        lines.insert(choose.randint(0, len(lines)), choose.choice(JSON_PIECES))
    return "\n".join(lines)


def by_csv(text: str) -> list[list[str]] | None:
    try:
        rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True))
    except csv.Error:
        return None
    return [row for row in rows if row]


def by_pandas(content: bytes) -> list[list[str]] | None:
    try:
        frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, index_col=False)
    except ValueError:
        return None
    return [list(map(str, frame.columns)), *frame.to_numpy().tolist()]


def by_polars(content: bytes) -> list[list[str]] | None:
    try:
        frame = pl.read_csv(
            content, infer_schema=False, empty_string_is_null=False, raise_if_empty=True
        )
    except pl.exceptions.PolarsError:
        return None
    return [frame.columns, *map(list, frame.rows())]


def test_csv_is_what_others_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    accepted = 0
    for seed in range(1000):
        text = "a,b\n" * (seed % 2) + nasty(CSV_PIECES, seed)
        content = text.encode()
        path.write_bytes(content)
        try:
            names, rows = read(path)
        except InvalidInput:
            continue
        accepted += 1
        ours = [names, *map(list, rows)]
        assert ours == by_csv(text), text
        others = by_pandas(content), by_polars(content)
        if others[0] == others[1] and others[0] is not None:
            assert ours == others[0], text
    assert accepted > 100


def test_json_lines_are_what_others_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    accepted = 0
    for seed in range(1000):
        text = nasty_lines(seed)
        path.write_bytes(text.encode())
        try:
            names, rows = read(path)
        except InvalidInput:
            continue
        accepted += 1
        lines = text.removeprefix("\ufeff").split("\n")
        told = [json.loads(line) for line in lines if line.strip()]
        ours = [tuple(one.get(name) for name in names) for one in told] if names else []
        assert exactly(rows) == exactly(ours), text
        assert [*dict.fromkeys(key for one in told for key in one)] == names
    assert accepted > 100


def test_json_lines_of_one_kind_are_what_frames_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    told = [{"a": n, "b": f"x{n}", "c": n / 4, "d": [n], "e": {"f": n % 2 == 0}} for n in range(50)]
    path.write_text("".join(json.dumps(one) + "\n" for one in told))
    names, rows = read(path)
    ours = [dict(zip(names, row, strict=True)) for row in rows]
    assert ours == pd.read_json(path, lines=True).to_dict("records")
    assert ours == pl.read_ndjson(path).to_dicts()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_cut_anywhere_is_refused_or_its_beginning(seed: int, tmp_path: Path) -> None:
    """A file that arrived in part: a row is never half of one."""
    whole = [{"a": f"é {n}", "b": [n, "x"]} for n in range(3 + seed)]
    content = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in whole).encode()
    path = tmp_path / "in.jsonl"
    for size in range(1, len(content)):
        path.write_bytes(content[:size])
        try:
            names, rows = read(path)
        except InvalidInput:
            continue
        assert [dict(zip(names, row, strict=True)) for row in rows] == whole[: len(rows)]
