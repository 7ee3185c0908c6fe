"""Outputs on disk: row groups, shards, their manifest, and what a crash leaves."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import warm
from domyn_swarm.batch.output.manifest import Manifest, read_manifest, without_secrets
from domyn_swarm.batch.output.output_files import SHARD_ROWS, OutputPlace, Writer, shard_name
from domyn_swarm.batch.output.part_writer import PartWriter
from domyn_swarm.errors import InvalidInput, OutputExists
from domyn_swarm.jobs.ends import verify_output
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker import main

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())], metadata={b"k": b"v"})


def batch(start: int, rows: int, width: int = 1) -> pa.RecordBatch:
    numbers = list(range(start, start + rows))
    texts = [str(number % 10) * width for number in numbers]
    return pa.RecordBatch.from_arrays([pa.array(numbers), pa.array(texts)], schema=SCHEMA)


def write(folder: Path, total: int, file_rows: int | None, step: int = 2048) -> list[Any]:
    folder.mkdir()
    with PartWriter(folder, SCHEMA, shard_name, file_rows) as writer:
        for start in range(0, total, step):
            writer.write(batch(start, min(step, total - start)))
        return writer.finish()


def groups(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]


@pytest.mark.parametrize("total", [0, 1, 65_536, 65_537, 200_000])
def test_small_batches_become_full_row_groups(tmp_path: Path, total: int) -> None:
    [file] = write(tmp_path / "one", total, None)
    path = tmp_path / "one" / file.name
    assert groups(path) == [65_536] * (total // 65_536) + [total % 65_536] * (total % 65_536 > 0)
    table = pq.read_table(path)
    assert table.column("n").to_pylist() == list(range(total))
    assert pq.read_schema(path).metadata[b"k"] == b"v"
    assert (file.rows, file.bytes) == (total, path.stat().st_size)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("total", [0, 1, 99, 100, 101, 200, 1234])
@pytest.mark.parametrize("step", [1, 7, 100, 2048])
def test_shards_are_full_but_for_the_last(tmp_path: Path, total: int, step: int) -> None:
    files = write(tmp_path / "many", total, 100, step)
    expected = [100] * (total // 100) + [total % 100] * (total % 100 > 0)
    assert [file.rows for file in files] == (expected or [0])
    assert [file.name for file in files] == [f"part-{at:05d}.parquet" for at in range(len(files))]
    assert pq.read_table(tmp_path / "many").column("n").to_pylist() == list(range(total))


def test_wide_rows_are_written_before_they_fill_the_memory(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    with PartWriter(tmp_path, SCHEMA, shard_name) as writer:
        most = 0
        for start in range(0, 8000, 100):
            writer.write(batch(start, 100, width=40_000))  # 4 MB each, 320 MB in all
            most = max(most, pa.total_allocated_bytes() - before)
        [file] = writer.finish()
    assert most < 60 * 1024 * 1024
    assert all(400 <= rows <= 500 for rows in groups(tmp_path / file.name)[:-1])


# -- whole jobs -----------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domyn_swarm.batch.output.publish.SHARD_ROWS", 100)


def run(bench: Any, **changes: Any) -> int:
    return main([str(bench.job_folder(bench.spec(**changes)))])


def shards(bench: Any) -> dict[str, Any]:
    return {"output": str(bench.folder / "out"), "shard_output": True}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leftovers(bench: Any) -> list[str]:
    return [name for name in names(bench.folder) if name.startswith(".")]


def manifest_of(path: Path) -> Manifest:
    found = read_manifest(path)
    assert found is not None
    return found


@pytest.mark.usefixtures("small_shards")
def test_shards_hold_every_row_in_input_order_with_one_schema(bench: Any, answer: Any) -> None:
    bench.write(250)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p249" else 200)
    assert run(bench, **shards(bench)) == 7
    out = bench.folder / "out"
    parts = [f"part-{at:05d}.parquet" for at in range(3)]
    assert names(out) == ["_manifest.json", *parts]
    assert len({str(pq.read_schema(out / part)) for part in parts}) == 1  # `_error` in all
    rows = pq.read_table(out).to_pylist()
    assert [row["n"] for row in rows] == list(range(250))
    assert [row["answer"] for row in rows[:249]] == [f"P{n}" for n in range(249)]
    assert rows[249]["_error"]["status"] == 400
    assert [file.rows for file in manifest_of(out / "_manifest.json").files] == [100, 100, 50]
    assert leftovers(bench) == []


def test_no_rows_are_one_empty_shard(bench: Any) -> None:
    bench.write(0)
    assert run(bench, **shards(bench)) == 0
    assert names(bench.folder / "out") == ["_manifest.json", "part-00000.parquet"]
    assert pq.read_table(bench.folder / "out").num_rows == 0
    assert pq.read_schema(bench.folder / "out" / "part-00000.parquet").names[-1] == "answer"


@pytest.mark.usefixtures("small_shards")
def test_shards_of_the_same_job_are_replaced_the_surplus_ones_too(bench: Any) -> None:
    bench.write(250)
    assert run(bench, **shards(bench)) == 0
    assert run(bench, **shards(bench), limit=30) == 0
    out = bench.folder / "out"
    assert names(out) == ["_manifest.json", "part-00000.parquet"]
    assert pq.read_table(out).num_rows == 30
    assert manifest_of(out / "_manifest.json").limit == 30
    assert leftovers(bench) == []


def test_a_link_to_a_folder_of_shards_is_followed(bench: Any) -> None:
    bench.write(5)
    (bench.folder / "elsewhere" / "real").mkdir(parents=True)
    (bench.folder / "out").symlink_to(bench.folder / "elsewhere" / "real")
    for _ in range(2):
        assert run(bench, **shards(bench)) == 0
    assert (bench.folder / "out").is_symlink()
    assert names(bench.folder / "elsewhere") == ["real"]
    assert pq.read_table(bench.folder / "elsewhere" / "real").num_rows == 5


@pytest.mark.parametrize("foreign", ["notes.txt", "part-00001.parquet", "_manifest.json", "."])
def test_a_folder_with_anything_foreign_in_it_is_left_alone(bench: Any, foreign: str) -> None:
    bench.write(5)
    out = bench.folder / "out"
    if foreign == ".":
        out.write_text("a file")
    else:
        assert run(bench, **shards(bench)) == 0
        pq.write_table(pa.table({"a": [1]}), out / foreign)
    with pytest.raises(OutputExists, match=str(out / foreign)):
        prepare(bench.spec(**shards(bench)))
    with pytest.raises(OutputExists):  # of another model, and so another job
        prepare(bench.spec(**shards(bench), model="other"))


def test_an_empty_folder_is_as_good_as_none(bench: Any) -> None:
    bench.write(5)
    (bench.folder / "out").mkdir()
    assert run(bench, **shards(bench)) == 0
    assert pq.read_table(bench.folder / "out").num_rows == 5


def test_what_came_to_lie_there_while_the_job_ran_is_left_alone(bench: Any, answer: Any) -> None:
    bench.write(20)
    out = bench.folder / "out"

    def behave(_prompt: str, _nth: int) -> Any:
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("mine")
        return answer()

    bench.server.behave = behave
    assert run(bench, **shards(bench)) == 6
    assert (out / "thesis.txt").read_text() == "mine"
    assert leftovers(bench) == []
    shutil.rmtree(out)
    bench.server.asked.clear()
    assert run(bench, **shards(bench)) == 0
    assert not bench.server.asked


# -- the manifest ---------------------------------------------------------------------------


def test_the_manifest_tells_all_and_is_right_after_resumes(bench: Any, answer: Any) -> None:
    bench.write(40)
    bench.server.behave = lambda prompt, _nth: answer(status=400 if prompt == "p7" else 200)
    assert run(bench, limit=25) == 7
    bench.server.behave = lambda _prompt, _nth: answer()
    kwargs = {"temperature": 0.5}
    assert run(bench, job_id="j2", name="again", limit=30) == 7
    found = manifest_of(bench.folder / "out.parquet.manifest.json")
    assert (found.job.id, found.job.name, found.job.model) == ("j2", "again", "m")
    assert found.job.job_class == "domyn_swarm.jobs:ChatCompletionJob"
    assert (found.input.path, found.input.rows) == (str(bench.folder / "in.parquet"), 40)
    assert (found.limit, found.rows, found.rows_failed, found.rows_empty) == (30, 30, 1, 0)
    lengths = sum(len(f"p{n}") for n in range(30) if n != 7)
    assert (found.tokens.prompt, found.tokens.completion) == (lengths, lengths)
    assert [(column.name, column.type) for column in found.columns][:3] == [
        ("n", "int64"),
        ("prompt", "string"),
        ("answer", "string"),
    ]
    assert set(found.versions) == {"domyn-swarm", "python", "pyarrow"}
    [file] = found.files
    content = (bench.folder / file.name).read_bytes()
    assert (file.name, file.rows, file.bytes) == ("out.parquet", 30, len(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    folder = bench.folder / "checkpoints" / found.job.identity
    assert found.job.identity_fields == json.loads((folder / "identity.json").read_text())
    other = {"output": str(bench.folder / "b.parquet"), "job_kwargs": kwargs}
    assert run(bench, **other) == 0
    assert (
        manifest_of(bench.folder / "b.parquet.manifest.json").job.identity_fields["params"]
        == kwargs
    )


def test_a_row_that_was_answered_with_nothing_is_counted(bench: Any, answer: Any) -> None:
    bench.write(5)
    nothing = {"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]}
    bench.server.behave = lambda prompt, _nth: answer(body=nothing if prompt == "p1" else None)
    code = run(bench)
    found = manifest_of(bench.folder / "out.parquet.manifest.json")
    assert (code, found.rows_failed, found.rows_empty) in {(0, 0, 1), (7, 1, 0)}


def test_a_foreign_manifest_is_not_overwritten(bench: Any) -> None:
    bench.write(3)
    (bench.folder / "out.parquet.manifest.json").write_text("{}")
    with pytest.raises(OutputExists, match=r"out\.parquet\.manifest\.json"):
        prepare(bench.spec())


def test_secrets_do_not_travel_with_the_output() -> None:
    params = {"api_key": "k", "max_tokens": 5, "stop": ["a"], "extra": [{"Authorization": "b"}]}
    hidden = without_secrets({"params": {**params, "hf_token": "c", "token": "d"}})
    assert hidden == {
        "params": {
            "api_key": "***",
            "max_tokens": 5,
            "stop": ["a"],
            "extra": [{"Authorization": "***"}],
            "hf_token": "***",
            "token": "***",
        }
    }


_READ = """
import sys
from pathlib import Path
from domyn_swarm.batch.input.file_facts import InputFacts
from domyn_swarm.jobs.preparation import prepare
from domyn_swarm.jobs.worker_program import read_spec
from domyn_swarm.jobs.worker import main
from domyn_swarm.paths import JobPaths

read, output = [], sys.argv[2]
sys.addaudithook(lambda event, args: event == "open" and read.append(str(args[0])))
paths, facts = JobPaths(Path(sys.argv[1])), InputFacts()
prepare(read_spec(paths), facts)  # as who submits it does
facts.save(paths.input_facts)
assert main([sys.argv[1]]) == 0
print(read.count(output))
"""


def test_an_output_is_known_again_by_a_look_and_read_once_if_it_was_copied(bench: Any) -> None:
    bench.write(5)
    out = bench.folder / "out.jsonl"
    folder = bench.job_folder(bench.spec(output=str(out)))
    assert main([str(folder)]) == 0

    def reads() -> int:
        done = warm.run_code(_READ, str(folder), str(out))
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert reads() == 0
    shutil.copy(out, bench.folder / "copy")
    (bench.folder / "copy").replace(out)
    assert reads() == 1
    assert reads() == 0
    text = out.read_text()
    out.write_text(text.replace("P1", "X1"))  # as long as it was
    with pytest.raises(OutputExists):
        prepare(bench.spec(output=str(out)))
    out.write_text(text)
    assert reads() == 1


# -- crashes --------------------------------------------------------------------------------


def is_whole(path: Path, rows: int) -> bool:
    found = [row["answer"] for row in pq.read_table(path).to_pylist()]
    return found == [f"P{number}" for number in range(rows)]


_KILLED_AT = """
import os, pathlib, shutil, signal, sys
from domyn_swarm.batch.output import publish
publish.SHARD_ROWS = 100
left = [int(sys.argv[2])]

def mortal(call):
    def wrapped(*args, **kwargs):
        reading = call.__name__ == "open" and args[1:2] not in (("w",), ("wb",))
        if not reading and any(word in str(args[0]) for word in ("out", "part-", "manifest")):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped

for name in ("mkdir", "rename", "replace", "open"):
    setattr(pathlib.Path, name, mortal(getattr(pathlib.Path, name)))
os.unlink, os.rmdir = mortal(os.unlink), mortal(os.rmdir)
from domyn_swarm.jobs.worker import main
sys.exit(main([sys.argv[1]]))
"""


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("sharded", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_or_is_mended(
    bench: Any, sharded: bool
) -> None:
    """The process is killed before its first, second, … step on the output's names."""
    bench.write(250)
    changes = shards(bench) if sharded else {}
    assert run(bench, limit=50) == 0  # all rows but the last are known from here on
    if sharded:
        assert run(bench, **changes, limit=50) == 0
    out = Path(bench.spec(**changes).output)
    states = []
    for step, limit in itertools.product(range(100), (250, 150)):  # so that old and new differ
        before = sum(file.rows for file in _files(bench, sharded)) if out.exists() else 0
        folder = bench.job_folder(bench.spec(**changes, limit=limit))
        done = warm.run_code(_KILLED_AT, str(folder), str(step))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        rows = pq.read_table(out).num_rows if out.exists() else None
        assert rows in (None, before, limit)
        assert rows is None or is_whole(out, rows)
        states.append("none" if rows is None else "new" if rows == limit else "old")
        assert run(bench, **changes, limit=limit) == 0
        assert is_whole(out, limit)
        assert leftovers(bench) == []
    else:
        raise AssertionError("never came to its end")
    bench.server.asked.clear()
    assert run(bench, **changes, limit=limit) == 0
    assert not bench.server.asked  # no kill has lost a row
    assert states[0] == "old"
    assert ("none" in states) == sharded  # between two renames
    assert "new" in states


def _files(bench: Any, sharded: bool) -> Any:
    name = "out/_manifest.json" if sharded else "out.parquet.manifest.json"
    return manifest_of(bench.folder / name).files


@pytest.mark.parametrize(
    "target",
    [
        *({"output": f"out{suffix}"} for suffix in (".parquet", ".jsonl", ".csv")),
        {"output": "out", "shard_output": True},
        {"output": "memory://outputs/out.jsonl"},
    ],
    ids=str,
)
def test_only_what_is_asked_for_replaces_the_answers_to_another_input(
    bench: Any, target: dict[str, Any]
) -> None:
    inside = str(bench.folder / target["output"])
    target = {**target, "output": target["output"] if "://" in target["output"] else inside}
    bench.write(3)
    bench.write(2, "other.parquet", start=50)
    assert run(bench, **target) == 0
    bench.write(4)  # the same input, which has grown
    assert run(bench, **target) == 0
    (bench.folder / "link").symlink_to(bench.folder)
    assert run(bench, **target, input=str(bench.folder / "link" / "in.parquet")) == 0

    other = {**target, "input": str(bench.folder / "other.parquet")}
    with pytest.raises(
        OutputExists, match=r"has the answers to another input, .*in\.parquet"
    ) as no:
        prepare(bench.spec(**other))
    assert "--overwrite" in no.value.hint
    assert run(bench, **other) == 2
    bench.server.asked.clear()
    assert run(bench, **target) == 0
    assert run(bench, **other, overwrite=True) == 0
    assert bench.server.asked == {"p50": 1, "p51": 1}

    prompted = {**other, "job_kwargs": {"temperature": 0.5}}
    with pytest.raises(OutputExists) as changed:
        prepare(bench.spec(**prompted))
    assert "another job, j1. What differs: temperature: not set → 0.5." in changed.value.message
    assert "--overwrite" in changed.value.hint
    assert run(bench, **prompted, overwrite=True) == 0
    verified = verify_output(bench.spec(**prompted))
    assert (verified.whole, verified.rows) == (True, 2)


def test_the_input_is_no_output(bench: Any) -> None:
    path = bench.write(2)
    with pytest.raises(InvalidInput, match="is the input itself"):
        prepare(bench.spec(output=str(path), overwrite=True))


def test_an_output_in_the_folder_that_is_read_is_refused(bench: Any) -> None:
    """The next run of the same job would ask its rows as well."""
    (bench.folder / "in").mkdir()
    bench.write(2, "in/1.parquet")
    given = {"input": str(bench.folder / "in")}
    with pytest.raises(InvalidInput, match="lies in the input"):
        prepare(bench.spec(**given, output=str(bench.folder / "in/out.parquet")))
    sub = str(bench.folder / "in/sub/out.parquet")
    with pytest.raises(InvalidInput, match="lies in the input"):
        prepare(bench.spec(**given, output=sub, recursive=True))
    assert run(bench, **given, output=sub) == 0
    assert run(bench, **given, output=sub) == 0
    assert bench.server.asked.total() == 2


def test_a_job_that_was_begun_with_such_an_output_comes_to_its_end(bench: Any) -> None:
    """Earlier versions took it, and its answers were paid for. Once it is written it is refused."""
    (bench.folder / "in").mkdir()
    (bench.folder / "in/1.jsonl").write_text("".join(f'{{"prompt": "p{n}"}}\n' for n in range(3)))
    given = {"input": str(bench.folder / "in"), "output": str(bench.folder / "in/out.jsonl")}
    assert run(bench, **{**given, "output": str(bench.folder / "other.jsonl")}) == 0
    assert prepare(bench.spec(**given), begun=True).rows == 3
    assert run(bench, **given) == 0
    assert bench.server.asked.total() == 3
    with pytest.raises(InvalidInput, match="its rows would be asked, too") as told:
        prepare(bench.spec(**given), begun=True)
    assert "Move it" in told.value.hint


@pytest.mark.parametrize(
    ("columns", "mode", "hint"),
    [
        (["prompt", "_error"], "append", "Leave it out with --output-mode io_only, or rename it"),
        (["prompt", "_error"], "replace", "Leave it out with --output-mode io_only, or rename it"),
        (["prompt", "answer"], "replace", "io_only, or choose another name with --output-column"),
        (["prompt", "_error"], "io_only", None),
    ],
)
def test_who_meets_a_taken_name_is_told_what_helps(
    bench: Any, columns: list[str], mode: str, hint: str | None
) -> None:
    pq.write_table(pa.table({name: ["a"] for name in columns}), bench.folder / "in.parquet")
    spec = bench.spec(output_mode=mode)
    if hint is None:
        prepare(spec)
        return
    with pytest.raises(InvalidInput, match="already in the input") as raised:
        prepare(spec)
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_a_file_of_the_users_is_never_replaced(bench: Any, name: str, overwrite: bool) -> None:
    bench.write(2)
    mine = bench.folder / name
    changes = {"output": str(mine), "overwrite": overwrite}
    mine.write_text("mine\n")
    assert run(bench, **changes) == 2
    assert mine.read_text() == "mine\n"
    mine.unlink()
    assert run(bench, **changes) == 0
    mine.write_text("edited\n")
    assert run(bench, **changes) == 2
    assert mine.read_text() == "edited\n"


@pytest.mark.usefixtures("small_shards")
def test_shards_that_were_put_aside_come_back_when_the_swap_fails(bench: Any) -> None:
    bench.write(5)
    assert run(bench, **shards(bench)) == 0
    out = bench.folder / "out"
    identity = manifest_of(out / "_manifest.json").job.identity
    place = OutputPlace(out, sharded=True, writer=Writer(identity))
    with pytest.raises(FileNotFoundError), place.stage() as stage:
        place.put(stage / "never-written")
    assert is_whole(out, 5)
    assert leftovers(bench) == []


def test_a_full_shard_is_as_large_as_it_is_said_to_be() -> None:
    assert SHARD_ROWS == 250_000
