"""What a file says is what is asked, and what was answered is what is kept: whole jobs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from domyn_swarm.batch.inspection.results import export
from domyn_swarm.batch.output.manifest import manifest_path, read_manifest
from domyn_swarm.batch.output.open_types import Shape
from domyn_swarm.errors import InvalidInput
from domyn_swarm.jobs.ends import opened_results, verify_output
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main
from domyn_swarm.model import JobStatus

TEMPLATE = {"job": "domyn_swarm.jobs:TemplateJob", "input_columns": ()}


class Rows:
    """Runs jobs over files of a folder; `asked` are the bodies of the last run, by their order."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.folder: Path = bench.folder

    def run(self, source: str, target: str, **changes: Any) -> list[dict[str, Any]]:
        self.bench.server.bodies.clear()
        spec = self.spec(source, target, **changes)
        assert main([str(self.bench.job_folder(spec))]) == 0
        return list(self.bench.server.bodies)

    def spec(self, source: str, target: str, **changes: Any) -> Any:
        paths = {"input": str(self.folder / source), "output": str(self.folder / target)}
        return self.bench.spec(**{**paths, "max_concurrency": 1, **changes})

    def prompts(self, source: str, target: str, prompt: str, **changes: Any) -> list[str]:
        kwargs = {"prompt": prompt}
        bodies = self.run(source, target, **TEMPLATE, job_kwargs=kwargs, **changes)
        return [body["messages"][-1]["content"] for body in bodies]

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()

    def whole(self, source: str, target: str, **changes: Any) -> bool:
        found = verify_output(self.spec(source, target, **changes))
        assert found.whole, found.findings
        return found.whole


@pytest.fixture
def rows(bench: Any) -> Rows:
    bench.server.behave = lambda _prompt, _nth: _ok()
    return Rows(bench)


def _ok() -> Any:
    from model_server import Answer

    return Answer(text="ok")


# -- JSON Lines ----------------------------------------------------------------------------------


def test_a_conversation_is_sent_as_its_own_row_has_it(rows: Rows) -> None:
    parts = [{"type": "text", "text": "What is it?"}]
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    sent = [
        [{"role": "user", "content": parts}],
        [{"role": "user", "content": "plain"}],
        [{"role": "user", "content": "x", "name": "bob"}, call, {"role": "tool", "content": "1"}],
        "hi",
    ]
    rows.write("in.jsonl", *(json.dumps({"messages": one}) for one in sent))
    asked = rows.run("in.jsonl", "out.parquet", input_columns=("messages",))
    assert [body["messages"] for body in asked] == [
        *sent[:3],
        [{"role": "user", "content": "hi"}],
    ]
    table = pq.read_table(rows.folder / "out.parquet")
    assert [json.loads(one) for one in table["messages"].to_pylist()] == sent
    told = read_manifest(manifest_path(rows.folder / "out.parquet", sharded=False))
    assert told is not None
    assert told.columns[0].type == "json"
    assert told.columns[0].note == "it holds lists and text"
    # and the file is an input with the same rows
    again = rows.run(
        "out.parquet", "again.jsonl", input_columns=("messages",), output_columns=("b",)
    )
    assert [body["messages"] for body in again] == [body["messages"] for body in asked]
    assert rows.whole("in.jsonl", "out.parquet", input_columns=("messages",))


def test_a_column_of_json_stays_one(rows: Rows) -> None:
    """Parquet's own: its values are each row's, and what becomes of it is what it was."""
    texts = ['{"a": 1.50}', '{"a": 2}', None]
    table = pa.table({"prompt": ["x", "y", "z"], "j": pa.array(texts, pa.json_())})
    pq.write_table(table, rows.folder / "in.parquet")
    assert rows.prompts("in.parquet", "out.parquet", "{{ j.a if j else prompt }}") == [
        *("1.50", "2", "z")
    ]
    assert pq.read_table(rows.folder / "out.parquet")["j"] == table["j"]
    kwargs = {**TEMPLATE, "job_kwargs": {"prompt": "{{ j.a if j else prompt }}"}}
    assert rows.whole("in.parquet", "out.parquet", **kwargs)


def test_what_is_no_json_in_a_column_of_json_is_its_text(rows: Rows) -> None:
    texts = ["[1,\n 2]", "no JSON", "1e400"]
    table = pa.table({"prompt": ["x", "y", "z"], "j": pa.array(texts, pa.json_())})
    pq.write_table(table, rows.folder / "in.parquet")
    assert rows.prompts("in.parquet", "out.jsonl", "{{ j }}") == ["[1,2]", "no JSON", "1e400"]
    lines = rows.lines("out.jsonl")
    assert [json.loads(line)["j"] for line in lines[:2]] == [[1, 2], "no JSON"]
    assert '"j":1e400,' in lines[2]


def test_conversations_that_mix_text_and_parts_are_the_next_jobs_conversations(rows: Rows) -> None:
    parts = [{"type": "text", "text": "What is it?"}]
    rows.write("in.jsonl", json.dumps({"messages": [{"role": "user", "content": parts}]}))
    job = {"job": "domyn_swarm.jobs:MultiTurnChatCompletionJob", "input_columns": ("messages",)}
    rows.run("in.jsonl", "out.parquet", **job, output_columns=("messages2",))
    asked = rows.run("out.parquet", "next.jsonl", input_columns=("messages2",))
    assert asked[0]["messages"] == [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "ok"},
    ]


def test_tools_and_objects_have_no_nulls_of_other_rows(rows: Rows) -> None:
    def tool(name: str, field: str) -> dict[str, Any]:
        schema = {"type": "object", "properties": {field: {"type": "string"}}}
        return {"type": "function", "function": {"name": name, "parameters": schema}}

    one, two = [tool("a", "city")], [tool("b", "sym")]
    rows.write(
        "in.jsonl",
        json.dumps({"messages": "w?", "tools": one, "r": {"x": 1}, "t": 0.5}),
        json.dumps({"messages": "s?", "tools": two, "r": {"y": 2}}),
    )
    asked = rows.run(
        "in.jsonl",
        "out.jsonl",
        input_columns=("messages",),
        job_kwargs={"param_columns": {"tools": "tools", "temperature": "t"}},
    )
    assert [body["tools"] for body in asked] == [one, two]
    assert [body.get("temperature") for body in asked] == [0.5, None]
    assert rows.prompts("in.jsonl", "o.jsonl", "{{ r }}") == ['{"x":1}', '{"y":2}']


def test_numbers_are_those_of_the_file(rows: Rows) -> None:
    numbers = ["17915699055171962696", "9007199254740993", "1", "3.10", "1e5", "-0.0", "2.5E-3"]
    rows.write("in.jsonl", *(f'{{"id": {one}, "prompt": "p{one}"}}' for one in numbers))
    assert rows.prompts("in.jsonl", "a.jsonl", "Find {{ id }}") == [f"Find {n}" for n in numbers]
    rows.run("in.jsonl", "b.jsonl", id_column="id")
    assert rows.lines("b.jsonl") == [
        f'{{"id": {n}, "prompt": "p{n}","answer":"ok"}}' for n in numbers
    ]
    assert rows.whole("in.jsonl", "b.jsonl", id_column="id")
    rows.run("in.jsonl", "c.parquet")
    table = pq.read_table(rows.folder / "c.parquet")
    assert table["id"].to_pylist() == numbers  # no one type holds them all
    assert rows.whole("in.jsonl", "c.parquet")


def test_numbers_that_are_written_in_two_ways_are_two_values(rows: Rows) -> None:
    """A prompt has them as they are written: what one was answered is no answer to the other."""
    prompt = "Python {{ v }}"
    rows.write("in.jsonl", '{"v": 3.1}', '{"v": 3.10}', '{"v": {"n": 3.10}}', '{"v": {"n": 3.1}}')
    asked = rows.prompts("in.jsonl", "out.jsonl", prompt, dedup="always")
    four = ["Python 3.1", "Python 3.10", 'Python {"n":3.10}', 'Python {"n":3.1}']
    assert sorted(asked) == sorted(four)
    rows.write("in.jsonl", '{"v": 3.10}', '{"v": 3.10}', '{"v": {"n": 3.10}}', '{"v": {"n": 3.1}}')
    assert rows.prompts("in.jsonl", "out.jsonl", prompt) == ["Python 3.10"]
    large = 2**64  # MessagePack has no such number: another way to compare
    for text in ("1.5", "1.50", "1.5e0"):
        rows.write("in.jsonl", f'{{"v": [{large}, {text}]}}')
        expected = [f"Python [{large},{text}]"]
        assert rows.prompts("in.jsonl", "out.jsonl", prompt) == expected


def test_a_number_that_is_written_as_others_write_it_is_theirs(rows: Rows) -> None:
    rows.write("in.jsonl", *(f'{{"v": {n}}}' for n in ("3.1", "1e+22", "2.5e-07", "7")))
    assert len(rows.prompts("in.jsonl", "out.jsonl", "{{ v }}")) == 4
    pq.write_table(pa.table({"v": [3.1, 1e22, 2.5e-07]}), rows.folder / "in.parquet")
    assert rows.prompts("in.parquet", "out2.jsonl", "{{ v }}") == []


@pytest.mark.parametrize(
    ("text", "loses"),
    [
        ("0.12345678901234567890123", True),
        ("123456789012345678.5", True),
        ("1e-400", True),
        ("1.2345678901234567e-320", True),
        ("0.10000000000000001", False),  # a 64-bit number with its 17 digits
        ("0.1000000000000000000000000", False),
        ("5e-324", False),
        ("0.0e-400", False),
        ("-2.50E-3", False),
    ],
)
@pytest.mark.parametrize("form", ["%s", "[%s]", '{"a": [{"b": %s}]}'])
def test_fractions_keep_their_digits_in_a_file_with_types(
    rows: Rows, form: str, text: str, loses: bool
) -> None:
    values = [form % "0.5", form % text]
    rows.write("in.jsonl", *(f'{{"prompt": "p", "v": {value}}}' for value in values))
    rows.run("in.jsonl", "out.parquet")
    column = pq.read_table(rows.folder / "out.parquet")["v"]
    told = read_manifest(manifest_path(rows.folder / "out.parquet", sharded=False))
    assert told is not None
    assert ("lose digits" in str(told.columns[1].note)) is loses
    if loses:
        assert column.to_pylist() == values
    else:
        assert "double" in str(column.type)
    assert rows.whole("in.jsonl", "out.parquet")


def test_whole_numbers_have_a_type_that_holds_them(rows: Rows) -> None:
    big = [2**63 + 5, 2**64 - 1, 1]
    rows.write("in.jsonl", *(json.dumps({"prompt": "p", "u": n, "d": -n, "f": n % 7}) for n in big))
    rows.run("in.jsonl", "out.parquet")
    table = pq.read_table(rows.folder / "out.parquet")
    assert table.schema.field("u").type == pa.uint64()
    assert table["u"].to_pylist() == big
    assert [int(one) for one in table["d"].to_pylist()] == [-n for n in big]
    assert rows.whole("in.jsonl", "out.parquet")


def test_a_row_is_written_as_it_was_with_its_answer_behind_it(rows: Rows) -> None:
    lines = [
        '{"b": 1.50, "prompt": "x", "a": {"k": null, "z": [1, 2.0]}}',
        ' {"prompt":"y"  ,  "c":"\\u00e9 \\ud83d\\ude00 /\\/", "n": null}\r',
        "",
        '{"a":{},"prompt":"z","big":123456789012345678901234567890.5}',
    ]
    rows.write("in.jsonl", *lines)
    rows.run("in.jsonl", "out.jsonl")
    assert rows.lines("out.jsonl") == [
        '{"b": 1.50, "prompt": "x", "a": {"k": null, "z": [1, 2.0]},"answer":"ok"}',
        '{"prompt":"y"  ,  "c":"\\u00e9 \\ud83d\\ude00 /\\/", "n": null,"answer":"ok"}',
        '{"a":{},"prompt":"z","big":123456789012345678901234567890.5,"answer":"ok"}',
    ]
    assert rows.whole("in.jsonl", "out.jsonl")
    rows.run("in.jsonl", "less.jsonl", output_mode="replace")
    assert [list(json.loads(one)) for one in rows.lines("less.jsonl")] == [
        ["b", "a", "answer"],
        ["c", "n", "answer"],
        ["a", "big", "answer"],
    ]
    assert rows.whole("in.jsonl", "less.jsonl", output_mode="replace")
    for name in ("out.parquet", "out.csv"):  # of any kind, without asking again
        assert rows.run("in.jsonl", name) == []
        assert rows.whole("in.jsonl", name)


def test_a_changed_field_of_a_row_is_found(rows: Rows) -> None:
    rows.write("in.jsonl", *(f'{{"prompt": "p{n}", "k": {n}}}' for n in range(5)))
    rows.run("in.jsonl", "out.jsonl")
    out = rows.folder / "out.jsonl"
    out.write_text(out.read_text().replace('"k": 3', '"k": 4'))
    found = verify_output(rows.spec("in.jsonl", "out.jsonl"))
    assert any("in 1 row, the first at 3" in one for one in found.findings)


def test_appended_rows_alone_are_asked_whatever_they_bring(rows: Rows) -> None:
    def conversation(n: int, **more: Any) -> str:
        return json.dumps({"id": n, "messages": [{"role": "user", "content": f"q{n}", **more}]})

    known = {"id_column": "id", "input_columns": ("messages",)}
    rows.write("1.jsonl", *(conversation(n) for n in range(20)))
    assert len(rows.run("1.jsonl", "1.parquet", **known)) == 20
    rows.write("2.jsonl", *(conversation(n) for n in range(20)), conversation(20, name="bob"))
    assert len(rows.run("2.jsonl", "2.parquet", **known)) == 1
    rows.write("3.jsonl", *(f'{{"score": {n}}}' for n in range(20)))
    assert len(rows.prompts("3.jsonl", "3.parquet", "{{ score }}")) == 20
    rows.write("3.jsonl", *rows.lines("3.jsonl"), '{"score": 3.5}', '{"score": "A"}')
    assert len(rows.prompts("3.jsonl", "3.parquet", "{{ score }}")) == 2
    rows.write("4.csv", "id,prompt", *(f"{n},p{n}" for n in range(20)))
    assert len(rows.run("4.csv", "4.parquet", id_column="id")) == 20
    rows.write("4.csv", *rows.lines("4.csv"), "A7,last")
    assert len(rows.run("4.csv", "4.parquet", id_column="id")) == 1


def test_a_key_of_its_own_in_each_row_is_no_burden(rows: Rows) -> None:
    lines = [json.dumps({"prompt": "q", "scores": {f"doc-{n}": 0.5}}) for n in range(50)]
    rows.write("in.jsonl", *lines)
    rows.run("in.jsonl", "out.parquet")
    table = pq.read_table(rows.folder / "out.parquet")
    assert table["scores"].to_pylist()[7] == '{"doc-7": 0.5}'
    shape = Shape()
    for number in range(50):
        shape.add({f"doc-{number}": 0.5})
        assert len(shape.fields) == (number == 0)  # what is kept does not grow with the rows


def test_results_of_any_shape_can_be_exported_and_read(rows: Rows) -> None:
    rows.write("in.jsonl", '{"prompt": "a", "m": {}}', '{"prompt": "b", "m": [1, "x", {}]}')
    spec = rows.spec("in.jsonl", "out.jsonl")
    rows.run("in.jsonl", "out.jsonl")
    for partial in (True, False):
        with opened_results(spec, JobStatus.SUCCEEDED, partial=partial) as results:
            for suffix in ("parquet", "jsonl", "csv"):
                export(results, rows.folder / f"export.{suffix}")
            assert results.table()["m"].to_pylist() == ["{}", '[1, "x", {}]']
        assert pq.read_table(rows.folder / "export.parquet")["m"].to_pylist()[0] == "{}"
        assert json.loads(rows.lines("export.jsonl")[1])["m"] == [1, "x", {}]


# -- CSV -----------------------------------------------------------------------------------------


def test_cells_are_their_text(rows: Rows) -> None:
    cells = ["00123", "3.10", "TRUE", "1e5", "2024-01-05T10:00:00Z", "n/a", "#N/A", "+5", "", " x "]
    names = [f"c{n}" for n in range(len(cells))]
    rows.write("in.csv", ",".join(names), ",".join(f'"{one}"' for one in cells))
    prompt = "|".join(f"{{{{ {name} }}}}" for name in names)
    assert rows.prompts("in.csv", "out.csv", prompt) == ["|".join(cells)]
    with (rows.folder / "out.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert [row[name] for name in names] == cells
    kwargs = {**TEMPLATE, "job_kwargs": {"prompt": prompt}}
    assert rows.whole("in.csv", "out.csv", **kwargs)
    assert rows.prompts("in.csv", "out.parquet", prompt) == []
    assert pq.read_table(rows.folder / "out.parquet")["c0"].to_pylist() == ["00123"]


# -- before the first request --------------------------------------------------------------------


def test_every_file_that_can_be_read_can_be_written(rows: Rows) -> None:
    (rows.folder / "bom.csv").write_bytes(b"\xef\xbb\xbfid,prompt\r\n1,hello\r\n")
    rows.write("empty.jsonl", '{"prompt": "a", "metadata": {}, "deep": [{"x": {}}]}')
    late = pa.array([253402300800000000], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["a"], "t": late}), rows.folder / "late.parquet")
    with pa.OSFile(str(rows.folder / "odd.arrow"), "wb") as sink:
        odd = pa.table(
            {
                "prompt": ["a"],
                "none": pa.array([{}], pa.struct([])),
                "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
                "ree": pa.RunEndEncodedArray.from_arrays([1], ["x"]),
                "late": pa.array([{"t": late[0].value}], pa.struct([("t", late.type)])),
            }
        )
        with pa.ipc.new_file(sink, odd.schema) as writer:
            writer.write_table(odd)
    for source in ("bom.csv", "empty.jsonl", "late.parquet", "odd.arrow"):
        for kind in ("parquet", "jsonl", "csv"):
            target = f"{source}.{kind}"
            rows.run(source, target, checkpoint_tag=source)
            assert rows.whole(source, target, checkpoint_tag=source)
    assert json.loads(rows.lines("bom.csv.jsonl")[0])["id"] == "1"
    assert json.loads(rows.lines("late.parquet.jsonl")[0])["t"].startswith("10000-01-01")
    told = read_manifest(manifest_path(rows.folder / "odd.arrow.parquet", sharded=False))
    assert told is not None
    assert "Parquet has no place" in str(told.columns[1].note)


def test_times_beyond_the_years_that_arrow_writes(rows: Rows) -> None:
    far = {
        "s": pa.array([2**40, 10**13, None], pa.timestamp("s")),
        "z": pa.array([-(10**13), 10**13, 0], pa.timestamp("s", "UTC")),
        "d": pa.array([10**8, 0, -(10**8)], pa.date32()),
        "l": pa.array([[10**13], [0], []], pa.list_(pa.timestamp("s"))),
    }
    table = pa.table({"prompt": ["p0", "p1", "p2"], **far})
    source = str(rows.folder / "in.arrow")
    with pa.OSFile(source, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for target in ("out.jsonl", "out.csv"):
        rows.run("in.arrow", target)
        assert rows.whole("in.arrow", target)
    written = [json.loads(line) for line in rows.lines("out.jsonl")]
    assert [row["s"] for row in written] == ["36812-02-20 00:36:16", "318857-05-20 17:46:40", None]
    assert [row["z"][:7] for row in written] == ["-314918", "318857-", "1970-01"]
    assert written[0]["z"].endswith("Z")
    assert [row["d"] for row in written] == ["275760-09-13", "1970-01-01", "-271821-04-20"]
    assert written[0]["l"] == ["318857-05-20 17:46:40"]
    with (rows.folder / "out.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["s"] for row in cells] == ["36812-02-20 00:36:16", "318857-05-20 17:46:40", ""]
    assert [row["d"] for row in cells] == ["275760-09-13", "1970-01-01", "-271821-04-20"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["Mars/Olympus", "UTC+3", "+25:00"])
def test_times_of_a_zone_that_nobody_knows(rows: Rows, unit: str, zone: str) -> None:
    """No prompt shows them; an output has the same moment in UTC."""
    second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pa.array([1_700_000_000 * second, None], pa.timestamp(unit, zone))
    table = pa.table({"prompt": ["p0", "p1"], "t": times})
    source = str(rows.folder / "in.arrow")
    with pa.OSFile(source, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    wrong = rf"column 't' are of the time zone '{re.escape(zone)}'"
    with pytest.raises(InvalidInput, match=wrong):
        prepare(rows.spec("in.arrow", "o.jsonl", **TEMPLATE, job_kwargs={"prompt": "{{ t }}"}))
    with pytest.raises(InvalidInput, match=wrong):
        prepare(rows.spec("in.arrow", "o.jsonl", id_column="t"))
    for target in ("out.jsonl", "out.csv", "out.parquet"):
        rows.run("in.arrow", target)
        assert rows.whole("in.arrow", target)
    shown = [json.loads(line)["t"] for line in rows.lines("out.jsonl")]
    assert re.fullmatch(r"2023-11-14[ T]22:13:20(\.0+)?Z", shown[0])
    assert shown[1] is None
    assert pq.read_table(rows.folder / "out.parquet")["t"].cast(pa.int64()).to_pylist() == (
        [1_700_000_000 * max(second, 1000), None]  # Parquet has no seconds
    )


@pytest.mark.parametrize("unit", ["s", "ns"])
def test_times_of_a_zone_that_arrow_alone_knows(rows: Rows, unit: str) -> None:
    times = pa.array([1_700_000_000 * {"s": 1, "ns": 10**9}[unit]], pa.timestamp(unit, "-0530"))
    pq.write_table(pa.table({"t": times}), rows.folder / "in.parquet")
    [prompt] = rows.prompts("in.parquet", "out.jsonl", "{{ t }}")
    assert re.fullmatch(r"2023-11-14 16:43:20(\.0+)?-0530", prompt)


def test_nulls_of_structs_are_not_sent(rows: Rows) -> None:
    """Arrow's structs have every field in every row."""
    messages = [
        [{"role": "user", "content": "a", "name": "bob"}],
        [{"role": "user", "content": "b"}],
    ]
    pq.write_table(pa.table({"messages": messages}), rows.folder / "in.parquet")
    asked = rows.run("in.parquet", "out.parquet", input_columns=("messages",))
    assert [body["messages"] for body in asked] == messages
    rows.write("in.jsonl", *(json.dumps({"messages": one}) for one in messages))
    assert rows.run("in.jsonl", "out.jsonl", input_columns=("messages",)) == []  # the same rows


def test_types_of_cells_are_inferred_where_that_is_asked(rows: Rows) -> None:
    rows.write(
        "in.csv", "prompt,i,f,b,t,z", "p0,1,1,true,x,007", "p1,-20,1.50,False,,1", "p2,,,,2,"
    )
    rows.run("in.csv", "out.parquet", infer_types=True)
    table = pq.read_table(rows.folder / "out.parquet")
    kinds = [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string()]
    assert table.schema.types[:6] == kinds
    assert table["i"].to_pylist() == [1, -20, None]
    assert table["f"].to_pylist() == [1.0, 1.5, None]
    assert table["z"].to_pylist() == ["007", "1", ""]
    assert rows.whole("in.csv", "out.parquet", infer_types=True)
    with pytest.raises(InvalidInput, match="--infer-types is for CSV"):
        prepare(rows.spec("in.csv", "out.jsonl", infer_types=True))


def test_why_numbers_of_cells_stay_text_is_told(rows: Rows) -> None:
    large, exact = "9223372036854775807", "9007199254740993"
    rows.write(
        "in.csv",
        "prompt,most,more,mixed,words,far,near,fine,signed",
        f"p0,{large},9223372036854775808,{exact},{large}9,1.5,1.0e-400,0.12345678901234567890,1",
        f"p1,-{large},1,0.5,x,1.0e400,0.10,0.5,-0",
    )
    rows.run("in.csv", "out.parquet", infer_types=True)
    table = pq.read_table(rows.folder / "out.parquet")
    assert table["most"].to_pylist() == [int(large), -int(large)]
    assert table["more"].to_pylist() == ["9223372036854775808", "1"]
    assert table["mixed"].to_pylist() == [exact, "0.5"]
    told = read_manifest(manifest_path(rows.folder / "out.parquet", sharded=False))
    assert told is not None
    notes = {one.name: one.note for one in told.columns if one.note}
    assert table["far"].to_pylist() == ["1.5", "1.0e400"]
    assert table["near"].to_pylist() == ["1.0e-400", "0.10"]
    assert table["fine"].to_pylist() == ["0.12345678901234567890", "0.5"]
    assert table["signed"].to_pylist() == ["1", "-0"]
    assert notes.keys() == {"more", "mixed", "far", "near", "fine"}
    assert notes["near"] == notes["fine"] == "it holds fractions that would lose digits as numbers"
    assert "beyond 10^308" in str(notes["far"])
    assert "beyond 64 bits" in str(notes["more"])
    assert "lose digits" in str(notes["mixed"])
    assert rows.whole("in.csv", "out.parquet", infer_types=True)


def test_an_output_for_which_there_is_no_room_is_refused(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write("in.jsonl", *(f'{{"prompt": "{n}"}}' for n in range(10)))
    room = shutil.disk_usage(rows.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room._replace(free=100))
    with pytest.raises(InvalidInput, match="has room for"):
        prepare(rows.spec("in.jsonl", "out.jsonl"))
    prepare(rows.spec("in.jsonl", "out.jsonl", limit=3))


def test_an_output_that_could_not_be_written_is_written_later_without_asking(rows: Rows) -> None:
    rows.write("in.jsonl", *(f'{{"prompt": "p{n}"}}' for n in range(5)))
    target = rows.folder / "out.jsonl"

    def put_in_the_way(_prompt: str, _nth: int) -> Any:
        target.write_text("somebody else's")
        return _ok()

    rows.bench.server.behave = put_in_the_way
    spec = rows.spec("in.jsonl", "out.jsonl")
    assert main([str(rows.bench.job_folder(spec))]) == 6
    told = json.loads((rows.folder / "job" / "result.json").read_text())
    assert told["error"].startswith(f"Cannot write the output {target}: {target} exists and is not")
    assert "finished rows are not sent again" in told["error"]
    with opened_results(spec, JobStatus.FAILED, partial=True) as results:
        export(results, rows.folder / "export.parquet")
    assert pq.read_table(rows.folder / "export.parquet").num_rows == 5
    target.unlink()
    assert rows.run("in.jsonl", "out.jsonl") == []
    assert rows.whole("in.jsonl", "out.jsonl")


def test_columns_of_one_name_are_refused(rows: Rows) -> None:
    twice = pa.Table.from_arrays([["a"], [1], [2]], names=["prompt", "v", "v"])
    pq.write_table(twice, rows.folder / "d.parquet")
    with pytest.raises(InvalidInput, match="'v' more than once"):
        prepare(rows.spec("d.parquet", "out.parquet"))


def test_two_outputs_of_one_stem_have_a_manifest_each(rows: Rows) -> None:
    rows.write("in.jsonl", '{"prompt": "a"}')
    rows.run("in.jsonl", "same.jsonl")
    rows.run("in.jsonl", "same.csv")
    assert rows.whole("in.jsonl", "same.jsonl")
    assert rows.whole("in.jsonl", "same.csv")
    assert rows.run("in.jsonl", "same.jsonl") == []
