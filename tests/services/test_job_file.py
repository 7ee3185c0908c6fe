"""A job as a file: it is what the flags are, checked as a configuration is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from domyn_swarm.cli.job_flags import FLAGS, JobFlags, key_descriptions
from domyn_swarm.config.sources import yaml_text
from domyn_swarm.errors import ConfigError
from domyn_swarm.services.config_files import job_schema
from domyn_swarm.services.jobs import JobService
from domyn_swarm.services.requests import JobRequest
from domyn_swarm.swarm.job_file import JobFile, layer_of, read_job

WHOLE = """
swarm: demo
input: rows/in.parquet
output: out.parquet
prompt: "Hi {{ name }}"
parameters: {temperature: 0, stop: ["1", "on"], seed: 1}
input_columns: name
output_columns: [answer]
types: {age: int}
delimiter: ;
max_concurrency: 8
max_failures: 5%
timeout_s: 1.5
time_limit: 1:30:00
stop_after: 3d
continues: false
mem: 2G
placement: here
resume: false
limit: 10
"""


def asked(path: Path | None, **typed: Any) -> JobRequest:
    """The request of a file, and of flags as they are typed."""
    return read_job(path, JobFlags(file=path, **typed).layer())


def written(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_and_the_flags_of_the_same_words_are_the_same_request(tmp_path: Path) -> None:
    of_file = asked(written(tmp_path, WHOLE))
    of_flags = asked(
        None,
        swarm="demo",
        input=str(tmp_path / "rows/in.parquet"),
        output=str(tmp_path / "out.parquet"),
        prompt="Hi {{ name }}",
        job_kwargs='{"stop": ["1", "on"], "seed": 1}',
        temperature="0",
        input_columns=["name"],
        output_columns=["answer"],
        types="age=int",
        delimiter=";",
        max_concurrency="8",
        max_failures="5%",
        timeout_s=1.5,
        time_limit="1:30:00",
        stop_after="3d",
        no_continue=True,
        mem="2G",
        run_here=True,
        no_resume=True,
        limit=10,
    )
    assert of_file.import_folder == tmp_path
    assert of_file.model_copy(update={"import_folder": None}) == of_flags
    assert of_file.job == "domyn_swarm.jobs:TemplateJob"
    # By JSON, since a checkpoint's identity tells 0 from 0.0.
    assert json.dumps(of_flags.job_kwargs["temperature"]) == "0"
    assert of_file.resources.time_limit_s == 5400
    assert of_file.resources.stop_after_s == 3 * 86_400
    assert of_file.resources.continues is False


def test_flags_win_over_the_file_and_replace_what_says_the_same_in_other_words(
    tmp_path: Path,
) -> None:
    (tmp_path / "p.txt").write_text("From {{ name }}")
    path = written(tmp_path, WHOLE)
    won = asked(
        path,
        prompt_file=tmp_path / "p.txt",
        temperature="0.5",
        job_kwargs='{"stop": {"a": 1}}',
        limit=0,
        endpoint="http://there",
        model="m",
    )
    assert won.job_kwargs == {
        "temperature": 0.5,
        "stop": {"a": 1},
        "seed": 1,
        "prompt": "From {{ name }}",
    }
    assert (won.limit, won.swarm, won.endpoint, won.model) == (0, None, "http://there", "m")
    elsewhere = WHOLE.replace("swarm: demo", "endpoint: http://a\nmodel: m")
    other = written(tmp_path, elsewhere, "other.yaml")
    back = asked(other, swarm="mine")
    assert (back.swarm, back.endpoint, back.model) == ("mine", None, None)


def test_every_mistake_is_told_at_once_with_its_line_and_what_to_write(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
inptu: rows.csv
output: out.parquet
prompt: "Hi {{ name "
prompt_file: nothing.txt
timeout: 3
temperature: 0
max_concurrency: 0
api_key: abc
types: {a: money}
parameters: {extra_body: {auth_token: x}}
model: m
time_limit: soon
max_failures: many
stop_after: 3 days
""",
    )
    with pytest.raises(ConfigError) as caught:
        asked(path, cpus=0)
    told = {
        (one.place.removeprefix(f"{path}:"), one.key): one.message for one in caught.value.mistakes
    }
    said = {
        ("1", "inptu"): "did you mean input?",
        ("3", "prompt"): "wrong in line 1",
        ("4", "prompt_file"): "cannot be read",
        ("5", "timeout"): "write timeout_s",
        ("6", "temperature"): "under parameters",
        ("7", "max_concurrency"): "auto or a whole number",
        ("8", "api_key"): "looks like a secret",
        ("9", "types.a"): "'float'",
        ("10", "parameters.extra_body.auth_token"): "looks like a secret",
        ("11", "model"): "goes with endpoint",
        ("12", "time_limit"): "36:00:00",
        ("13", "max_failures"): "5%",
        ("14", "stop_after"): "3d, 12h",
        ("--cpus", "cpus"): "greater than or equal to 1",
        (str(path), "input"): "is required",
    }
    for key, words in said.items():
        assert words in told.pop(key), key
    assert told == {}


def test_what_the_jobs_class_does_not_take_is_told_at_its_line(tmp_path: Path) -> None:
    text = "input: a\noutput: b\nprompt: '{{ a }}'\nparameters:\n  temprature: 0\n  max_tokenz: 3\n"
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        asked(path)
    assert [(one.place, one.key) for one in caught.value.mistakes] == [
        (f"{path}:5", "parameters.temprature"),
        (f"{path}:6", "parameters.max_tokenz"),
    ]
    assert "Did you mean 'temperature'?" in caught.value.message


@pytest.mark.parametrize("content", ["Hi {{ a }}\n\n", "  Hi {{ a }}", "\ufeffHi {{ a }}\u2028ü"])
def test_what_a_prompts_file_says_is_asked_to_the_last_character(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "p.txt").write_bytes(content.encode())
    path = written(tmp_path, "input: a\noutput: b\nprompt_file: p.txt\n")
    assert asked(path).job_kwargs == {"prompt": content.removeprefix("\ufeff")}
    assert asked(None, input="a", output="b", prompt_file=tmp_path / "p.txt").job_kwargs == {
        "prompt": content.removeprefix("\ufeff")
    }
    (tmp_path / "p.txt").write_bytes(b"Hi\n\xe9 {{ a }}")
    with pytest.raises(ConfigError, match=r"p\.txt, line 2, is not UTF-8"):
        asked(path)


def test_paths_of_a_file_are_relative_to_it_and_the_tilde_is_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "jobs").mkdir()
    text = "input: ../in.csv\noutput: ~/out.csv\ncheckpoint_dir: kept\nprompt: '{{ a }}'\n"
    found = asked(written(tmp_path / "jobs", text))
    assert (found.input, found.output) == (f"{tmp_path}/jobs/../in.csv", "/home/me/out.csv")
    assert found.checkpoint_dir == tmp_path / "jobs" / "kept"
    typed = asked(None, input="~/in.csv", output="s3://b/~/x", prompt="{{ a }}")
    assert (typed.input, typed.output) == ("/home/me/in.csv", "s3://b/~/x")


def test_a_job_printed_as_yaml_is_read_back_as_the_same(tmp_path: Path) -> None:
    texts = ["Ä {{ a }}\n\n  two\n", "x\u2028{{ a }}\x85", "{{ a }}: # no"]
    for number, text in enumerate(texts):
        flags: dict[str, Any] = {"input": "/a", "output": "/b", "prompt": text}
        flags |= {"job_kwargs": '{"stop": ["yes", 1, null]}', "max_tokens": 5, "no_resume": True}
        printed = yaml_text(layer_of(None, JobFlags(**flags).layer()))
        again = asked(written(tmp_path, printed, f"{number}.yaml"))
        assert again.model_copy(update={"import_folder": None}) == asked(None, **flags)


def test_flags_keys_and_the_schema_for_editors_are_the_same(tmp_path: Path) -> None:
    """A key without a flag, or a flag without a key, is found here."""
    typed = {flag.key[0] for name, flag in JobFlags.flags.items() if name != "file"}
    assert typed == set(JobFile.field_names())
    assert FLAGS["swarm"] == "--name"
    schema = job_schema(key_descriptions())
    assert schema["properties"].keys() == typed
    assert all(field.get("description") for field in schema["properties"].values())
    validator = Draft202012Validator(schema)
    assert list(validator.iter_errors(yaml.safe_load(WHOLE))) == []
    assert list(validator.iter_errors({"inptu": "a"}))


def test_a_file_is_submitted_with_the_class_beside_it(service: JobService, bench: Any) -> None:
    bench.write(3)
    folder = bench.folder / "mine"
    folder.mkdir()
    (folder / "shouting_of_test.py").write_text(
        "from domyn_swarm import job\n\n\n"
        "@job(input_columns='prompt', output_schema={'loud': str})\n"
        "async def shout(item, client, model, **params):\n"
        "    reply = await client.chat.completions.create(\n"
        "        model=model, messages=[{'role': 'user', 'content': item}], **params)\n"
        "    return {'loud': reply.choices[0].message.content}\n"
    )
    path = written(
        folder,
        f"job: shouting_of_test:shout\nendpoint: {bench.server.url}\nmodel: m\n"
        "input: ../in.parquet\noutput: ../out.parquet\nparameters: {max_tokens: 7}\n",
    )
    ended = service.wait(service.submit(asked(path)))
    assert ended.status == "succeeded"
    assert [row["loud"] for row in bench.output()] == ["P0", "P1", "P2"]
    assert {body["max_tokens"] for body in bench.server.bodies} == {7}
