"""Layers, provenance, and every mistake told at once with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from domyn_swarm.config import DomynLLMSwarmConfig, dump_yaml, load
from domyn_swarm.config.backends import SlurmConfig
from domyn_swarm.config.pool_file import load_pool
from domyn_swarm.config.preamble import check_line
from domyn_swarm.config.sources import Layer, parse_yaml
from domyn_swarm.config.units import time_limit_s, time_limits_s
from domyn_swarm.errors import ConfigError
from domyn_swarm.swarm.job_file import read_job

GOOD = """\
name: demo
model: my/model
engine: sim
replicas: 3
env:
  HF_HOME: /models
  LEVEL: 1
backend: local
watchdog:
  max_restarts: 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    return path


def mistakes(text: str, tmp_path: Path, **options: Any) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, **options)
    return str(caught.value).replace(str(path), "bad.yaml")


def test_a_file_is_read(file: Path) -> None:
    config = DomynLLMSwarmConfig.read(file)
    assert (config.name, config.replicas, config.backend.type) == ("demo", 3, "local")
    assert config.env == {"HF_HOME": "/models", "LEVEL": "1"}
    assert config.watchdog.max_restarts == 1
    assert config.watchdog.probe_interval == 30


def test_whichever_layer_sets_a_key_wins_in_order(
    file: Path, swarm_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    swarm_home.mkdir()
    defaults = swarm_home / "defaults.yaml"
    defaults.write_text("replicas: 7\nport: 9000\nwatchdog: {max_restarts: 9, http_timeout: 5}\n")
    loaded = load(file)
    config = loaded.config
    assert (config.replicas, config.port) == (3, 9000)
    assert (config.watchdog.max_restarts, config.watchdog.http_timeout) == (1, 5.0)
    assert loaded.provenance["port"] == f"{defaults}:2"
    assert loaded.provenance["replicas"] == f"{file}:4"
    assert loaded.provenance["watchdog.max_restarts"] == f"{file}:10"
    assert loaded.provenance["min_ready"] == "built-in"
    loaded = load(file, overrides=["replicas=5", "watchdog.http_timeout=9"], name="other")
    assert (loaded.config.replicas, loaded.config.watchdog.http_timeout) == (5, 9.0)
    assert loaded.config.name == "other"
    assert loaded.provenance["replicas"] == "--set replicas"
    assert load(file, overrides=["replicas=5"], replicas=6).config.replicas == 6
    other = tmp_path / "other-defaults.yaml"
    other.write_text("port: 9100\n")
    monkeypatch.setenv("DOMYN_SWARM_DEFAULTS", str(other))
    assert load(file).config.port == 9100


def test_overrides_are_yaml_values(file: Path) -> None:
    overrides = ["args=[--a, --b]", "env.X=1", "backend={type: slurm, partition: p}", "image="]
    config = load(file, overrides=overrides).config
    assert config.args == ("--a", "--b")
    assert config.env == {"HF_HOME": "/models", "LEVEL": "1", "X": "1"}
    assert config.backend.type == "slurm"
    assert config.image == ""


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
model: m
replica: 3
replicas: many
engine: vlm
backend:
  type: slurm
  time_limit: soon
  partitin: gpu
watchdog:
  restart_policy: sometimes
  restart_backoff_initial: 90
router: {tls_cert: /nowhere}
name: Not_Good
min_ready: 2
gpus_per_replica: 6
replicas: 1
env:
  HF_TOKEN: hf_hidden
  not a name: 1
notify: {url: "ftp://x"}
tls_cert: x
"""
    said = mistakes(text, tmp_path, overrides=["port", "port=high"])
    assert said.splitlines()[:-1] == [
        "bad.yaml: 16 mistakes in the configuration:",
        "  bad.yaml:16: replicas: is a duplicate key, first on line 3; remove one",
        "  --set port: write key=value, for example replicas=4",
        "  bad.yaml:2: replica: unknown key; did you mean replicas?",
        "  bad.yaml:4: engine: must be 'vllm', 'llamacpp', 'sglang', 'sim' or 'command', not 'vlm'",
        "  bad.yaml:5: backend.partition: is required",
        "  bad.yaml:7: backend.time_limit: write a time like 36:00:00, 90 (minutes) or "
        "2-12:00:00 (days)",
        "  bad.yaml:8: backend.partitin: unknown key; did you mean partition?",
        "  bad.yaml:9: watchdog.restart_backoff_max: must not be less than "
        "restart_backoff_initial (90)",
        "  bad.yaml:10: watchdog.restart_policy: must be 'on-failure', 'always' or 'never', "
        "not 'sometimes'",
        "  bad.yaml:12: router.tls_cert: there is no file /nowhere",
        "  bad.yaml:13: name: must be lower-case letters, digits and hyphens, begin with a letter, "
        "not end with a hyphen, at most 40; for example not-good",
        "  bad.yaml:14: min_ready: 2 is more than replicas (1)",
        "  bad.yaml:19: env.not a name: is not the name of a variable: use letters, digits and _",
        "  bad.yaml:20: notify.url: must be a URL that begins with http:// or https://",
        "  bad.yaml:21: tls_cert: unknown key here; it belongs under router",
        "  --set port: must be a whole number, not 'high'",
    ]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("backend: {type: local, wait_endpoint_s: 5}", "it belongs at the top level"),
        ("max_restarts: 5\nbackend: local", "it belongs under watchdog"),
        ("watchdog: {expected_tp: 5}\nbackend: local", "it belongs under watchdog.ray"),
        ("partition: gpu\nbackend: local", "it belongs to a backend of type slurm"),
        (
            "wall_time: 1\nbackend: {type: slurm, partition: p}",
            "it belongs under backend.endpoint",
        ),
        ("backend: {type: slurm, partition: p, port: 5}", "at the top level or under backend.end"),
        ("nginx_image: x\nbackend: local", "remove it, this program contains the router"),
        ("backend: {type: local, lb_wait: 5}", "it is now called wait_endpoint_s"),
        ("name: My Swarm\nbackend: local", "for example my-swarm"),
    ],
)
def test_a_key_in_the_wrong_place_or_of_an_earlier_version(
    written: str, told: str, tmp_path: Path
) -> None:
    assert told in mistakes(f"model: m\n{written}\n", tmp_path)


def test_no_mistake_shows_a_secret(tmp_path: Path) -> None:
    text = "model: m\nbackend: local\nenv:\n  HF_TOKEN: hf_hidden\n  DB_PASSWORD: hf_hidden\n"
    said = mistakes(text, tmp_path)
    assert "bad.yaml:4: env.HF_TOKEN: looks like a secret" in said
    assert "bad.yaml:5: env.DB_PASSWORD: looks like a secret" in said
    assert "hf_hidden" not in said
    with pytest.raises(ValueError, match="looks like a secret") as caught:
        DomynLLMSwarmConfig.model_validate({"model": "m", "env": {"HF_TOKEN": "hf_hidden"}})
    assert "hf_hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "OPENAI_API_KEY",
        "apikey",
        "AWS_SECRET_ACCESS_KEY",
        "TOKEN_2",
        "MYTOKEN",
        "A_SECRET",
    ],
)
def test_secrets_are_known_by_their_names(name: str) -> None:
    with pytest.raises(ValueError, match="looks like a secret"):
        DomynLLMSwarmConfig.model_validate({"model": "m", "backend": "local", "env": {name: "x"}})


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "VLLM_MAX_TOKENS", "HF_TOKEN_PATH", "KEY", "SECRETARY"]
)
def test_what_only_sounds_like_a_secret_is_passed_on(name: str) -> None:
    config = {"model": "m", "backend": "local", "env": {name: "x"}}
    assert DomynLLMSwarmConfig.model_validate(config).env == {name: "x"}


# Every key, with a value as YAML writes it plainly and what it means.
KEYS: dict[str, tuple[str, Any]] = {
    "model": ("0123", "0123"),
    "name": ("on", "on"),
    "revision": ("1.10", "1.10"),
    "engine": ("sglang", "sglang"),
    "replicas": ("8", 8),
    "min_ready": ("1", 1),
    "gpus_per_node": ("16", 16),
    "gpus_per_replica": ("32", 32),
    "cpus_per_task": ("2", 2),
    "memory_gb": ("1.5e1", 15.0),
    "image": ("/a b.sif", Path("/a b.sif").as_posix()),
    "args": ("[--a, 1.10, 'b c']", ("--a", "1.10", "b c")),
    "port": ("9000", 9000),
    "wait_endpoint_s": ("60", 60.0),
    "env": ("{A: on, B: 1_000, C: 2024-01-01}", {"A": "on", "B": "1_000", "C": "2024-01-01"}),
    "home_directory": ("/x/y", Path("/x/y")),
    "metrics.textfile_dir": ("/var/prom", Path("/var/prom")),
    "metrics.discovery_dir": ("/srv/targets", Path("/srv/targets")),
    "engine_options": ("{a: 1, b: [true, 1.5]}", {"a": 1, "b": [True, 1.5]}),
    "router.policy": ("cache_aware", "cache_aware"),
    "router.max_concurrent": ("9", 9),
    "router.queue_size": ("0", 0),
    "router.retries": ("0", 0),
    "watchdog.probe_interval": ("0.5", 0.5),
    "watchdog.http_path": ("/ready", "/ready"),
    "watchdog.http_timeout": ("1", 1.0),
    "watchdog.readiness_timeout": ("5", 5.0),
    "watchdog.restart_policy": ("always", "always"),
    "watchdog.unhealthy_restart_after": ("7", 7.0),
    "watchdog.max_restarts": ("0", 0),
    "watchdog.restart_backoff_initial": ("1", 1.0),
    "watchdog.restart_backoff_max": ("2", 2.0),
    "watchdog.kill_grace_seconds": ("3", 3.0),
    "watchdog.progress_timeout": ("4", 4.0),
    "watchdog.ray.enabled": ("yes", True),
    "watchdog.ray.expected_tp": ("8", 8),
    "watchdog.ray.probe_timeout_s": ("1", 1.0),
    "watchdog.ray.status_grace_s": ("2", 2.0),
    "watchdog.ray.probe_interval_s": ("3", 3.0),
    "backend.partition": ("gpu", "gpu"),
    "backend.account": ("00123", "00123"),
    "backend.qos": ("normal", "normal"),
    "backend.time_limit": ("36:00:00", "36:00:00"),
    "backend.node_list": ("n[1-3]", "n[1-3]"),
    "backend.exclude_nodes": ("n9", "n9"),
    "backend.modules": ("[cuda/12.10]", ("cuda/12.10",)),
    "backend.preamble": ("['#SBATCH --x=$(y)']", ("#SBATCH --x=$(y)",)),
    "backend.container": ("enroot", "enroot"),
    "backend.container_args": ("[--nv]", ("--nv",)),
    "backend.mounts": ("{/a: /b}", {"/a": "/b"}),
    "backend.venv_path": ("/venv", "/venv"),
    "backend.env": ("{A: 1}", {"A": "1"}),
    "backend.requeue": ("off", False),
    "backend.drain_before_end_s": ("60", 60),
    "backend.packing": ("node", "node"),
    "backend.comment": ("project x", "project x"),
    "backend.gres": ("gpu:a100:{n}", "gpu:a100:{n}"),
    "backend.mem": ("480", "480"),
    "backend.mail_user": ("a@b.c", "a@b.c"),
    "backend.template_path": ("/t", "/t"),
    "backend.requires_ray": ("true", True),
    "backend.ray_port": ("1", 1),
    "backend.ray_dashboard_port": ("2", 2),
    "backend.endpoint.partition": ("cpu", "cpu"),
    "backend.endpoint.qos": ("low", "low"),
    "backend.endpoint.cpus_per_task": ("4", 4),
    "backend.endpoint.mem": ("16", "16"),
    "backend.endpoint.wall_time": ("2-12", "2-12"),
    "backend.endpoint.port": ("8001", 8001),
    "backend.endpoint.timeout_s": ("1", 1.0),
}
LEPTON: dict[str, tuple[str, Any]] = {
    "backend.workspace_id": ("007", "007"),
    "backend.env": ("{A: 1}", {"A": "1"}),
    **{
        f"backend.{part}.{key}": pair
        for part in ("endpoint", "job")
        for key, pair in {
            "image": ("a/b:1.10", "a/b:1.10"),
            "resource_shape": ("cpu.large", "cpu.large"),
            "allowed_dedicated_node_groups": ("[a]", ("a",)),
            "allowed_nodes": ("[1]", ("1",)),
            "env": ("{B: no}", {"B": "no"}),
            "secret_env": ("{TOKEN: s}", {"TOKEN": "s"}),
            "image_pull_secrets": ("[s]", ("s",)),
        }.items()
    },
    "backend.endpoint.api_token_secret_name": ("t", "t"),
}
# Exercised by tests of their own: files that must exist, what nothing acts on yet, the type.
ELSEWHERE = {
    "router.tls_cert",
    "router.tls_key",
    "router.tls_ca",
    "idle_timeout_s",
    "notify.url",
    "backend.type",
}
ELSEWHERE |= {"backend.endpoint.mounts", "backend.job.mounts"}


def nested(pairs: dict[str, str]) -> str:
    """YAML, one line for each section and for each key."""
    lines: list[str] = []
    open_at: list[str] = []
    for name in sorted(pairs, key=lambda one: (one.split(".")[0], one.count("."), one)):
        *sections, key = name.split(".")
        while open_at != sections[: len(open_at)]:
            open_at.pop()
        for section in sections[len(open_at) :]:
            lines.append(f"{'  ' * len(open_at)}{section}:")
            open_at.append(section)
        lines.append(f"{'  ' * len(open_at)}{key}: {pairs[name]}")
    return "\n".join(lines)


def value_of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("backend", "keys"), [("slurm", KEYS), ("lepton", {**KEYS, **LEPTON})])
def test_every_key_is_read_as_it_was_written(
    backend: str, keys: dict[str, tuple[str, Any]], tmp_path: Path
) -> None:
    if backend == "lepton":
        keys = {name: keys[name] for name in keys if "backend" not in name or name in LEPTON}
    path = tmp_path / "all.yaml"
    path.write_text(
        nested({name: text for name, (text, _) in keys.items()} | {"backend.type": backend})
    )
    loaded = load(path)
    for name, (_, meant) in keys.items():
        assert value_of(loaded.config, name) == meant, name
    leaves = {
        name
        for name in loaded.provenance
        if not any(name.startswith(f"{one}.") for one in keys if isinstance(keys[one][1], dict))
    }
    dicts = {name for name, (_, meant) in keys.items() if isinstance(meant, dict)}
    assert leaves | dicts == (set(keys) | ELSEWHERE) & (leaves | dicts)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(loaded.config))
    assert load(copy).config == loaded.config


@pytest.mark.parametrize(
    "name",
    [*KEYS, "router.tls_cert", "router.tls_key", "router.tls_ca", "idle_timeout_s", "notify.url"],
)
def test_a_wrong_value_of_any_key_is_told_at_its_line(name: str, tmp_path: Path) -> None:
    good = {"model": "m", "backend.type": "slurm", "backend.partition": "p"}
    text = nested({**good, name: "[[]]"})
    line = next(n for n, one in enumerate(text.splitlines(), 1) if one.endswith("[[]]"))
    said = mistakes(text, tmp_path).splitlines()
    assert said[0] == "bad.yaml: 1 mistake in the configuration:"
    assert f"  bad.yaml:{line}: {name}" in said[1]
    assert "must be" in said[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty, not a mapping"),
        ("- a\n", "is a list, not a mapping"),
        ("a: [1\n", "bad.yaml:2: not YAML"),
        ("model: a\nmodel: b\n", "bad.yaml:2: model: is a duplicate key, first on line 1"),
        (
            "model: a\nbackend: {type: slrm}\n",
            "bad.yaml:2: backend.type: must be one of local, slurm, lepton",
        ),
        (
            "model: a\nbackend: {}\n",
            "bad.yaml:2: backend.type: must be one of local, slurm, lepton",
        ),
        ("backend: local\n", "model: is required"),
        ("model: a\n", "backend: is required"),
        ("model: a\nbackend: local\nmin_ready: 2\n", "bad.yaml:3: min_ready: 2 is more than"),
        ("model:\nbackend: local\n", "bad.yaml:1: model: is required"),
        ("model: ''\nbackend: local\n", "bad.yaml:1: model: String should have at least 1"),
        ("text", "is text, not a mapping"),
        ("a: &x [*x]\n", "an alias contains itself"),
        ("[" * 3000, "nested too deeply"),
        ("a: b\nc: \x01\n", "bad.yaml:2: not YAML: contains the control character U+0001"),
        ('model: "a\\0"\nbackend: local\n', "bad.yaml:1: model: contains a NUL character"),
        ("model: a\nbackend: local\nmemory_gb: .inf\n", "bad.yaml:3: memory_gb: must be a number"),
        ("model: a\nbackend: local\nmemory_gb: nan\n", "bad.yaml:3: memory_gb: must be"),
        ("model: a\nbackend: local\nmemory_gb: inf\n", "bad.yaml:3: memory_gb: must be a finite"),
        ("model: a\nbackend: local\nreplicas: 2.5\n", "bad.yaml:3: replicas: must be a whole"),
        ("model: a\nbackend: local\nreplicas: true\n", "bad.yaml:3: replicas: must be a whole"),
        ("model: a\nbackend: local\nargs: 'a \"b'\n", "bad.yaml:3: args: is not a command line"),
        ("model: a\nbackend: local\ngpus_per_replica: 6\n", "bad.yaml:3: gpus_per_replica: is 6"),
        (
            "model: a\nbackend: local\ngpus_per_node: 0\n",
            "gpus_per_replica: is 1, but gpus_per_node",
        ),
        (
            "model: a\nbackend: local\nnotify: {url: x}\n",
            "bad.yaml:3: notify.url: must be a URL",
        ),
        (
            "model: a\nbackend: {type: local, partition: p}\n",
            "backend.partition: unknown key here; it belongs to a backend of type slurm",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: p\n  time_limit: 4\n"
            "  drain_before_end_s: 240\n",
            "bad.yaml:6: backend.drain_before_end_s: must be shorter than time_limit (4)",
        ),
        (
            "model: a\nbackend: {type: slurm, partition: p, time_limit: 5}\n",
            "bad.yaml:2: backend.drain_before_end_s: must be shorter than time_limit (5)",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: p\n  time_limit:\n    min: 4:00:00\n"
            "    max: 2:00:00\n",
            "bad.yaml:7: backend.time_limit.max: 2:00:00 is not longer than min (4:00:00)",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: p\n  time_limit:\n    min: 0\n"
            "    max: 2:00:00\n",
            "bad.yaml:6: backend.time_limit.min: 0 means no limit",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: p\n  time_limit: {max: 2:00:00}\n",
            "bad.yaml:5: backend.time_limit.min: is required",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: p\n"
            "  time_limit: {min: 5, max: 2:00:00}\n",
            "backend.drain_before_end_s: must be shorter than time_limit.min (5)",
        ),
        (
            "model: a\nbackend:\n  type: local\n  time_limit: {min: 5, max: 2:00:00}\n",
            "backend.time_limit: unknown key here; it belongs to a backend of type slurm",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: [a, 'b,c']\n",
            "bad.yaml:4: backend.partition: must be the name of a partition, or a list of such",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: p\n  time_limit: 1-0\n"
            "  endpoint: {wall_time: '23:59:59'}\n",
            "bad.yaml:6: backend.endpoint: wall_time must not be shorter than the replicas' 1-0",
        ),
        (
            "model: a\nbackend:\n  type: slurm\n  partition: p\n  preamble:\n"
            "    - --reservation=x\n    - '#SBATCH --exclusive -t 5'\n",
            "bad.yaml:7: backend.preamble.1: '#SBATCH --exclusive -t 5' sets --time, which "
            "domyn-swarm sets itself: use time_limit",
        ),
        ("model: a\nbackend: local\nreplicas: 0\n", "bad.yaml:3: replicas: must be greater"),
        (
            "model: a\nbackend: local\nreplicas:\n  min: 4\n  max: 2\n",
            "bad.yaml:5: replicas.max: 2 is less than min (4)",
        ),
        (
            "model: a\nbackend: local\nreplicas: {min: 1}\n",
            "bad.yaml:3: replicas.max: is required",
        ),
        (
            "model: a\nbackend: local\nreplicas: {min: 1, max: 2, maxi: 3}\n",
            "bad.yaml:3: replicas.maxi: unknown key; did you mean max?",
        ),
        (
            "model: a\nbackend: local\nreplicas: {max: 2}\nmin_ready: 3\n",
            "bad.yaml:4: min_ready: 3 is more than replicas (2)",
        ),
        ("model: a\nbackend: local\nreplicas: [1, 2]\n", "bad.yaml:3: replicas: must be a"),
        ("model: a\nbackend: local\nport: 70000\n", "bad.yaml:3: port"),
        ("model: a\nbackend: local\nargs: {a: 1}\n", "bad.yaml:3: args"),
    ],
)
def test_mistakes(text: str, words: str, tmp_path: Path) -> None:
    assert words in mistakes(text, tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--no-requeue", "sets --no-requeue, which domyn-swarm sets itself: remove it"),
        ("#SBATCH --comm=mine", "sets --comment"),
        ("-J mine", "sets --job-name"),
        ("-N2", "sets --nodes"),
        ("-p gpu", "sets --partition, which domyn-swarm sets itself: use partition"),
        ("module load x", "is not a line of options"),
        ("#SBATCH --reservation='x", "is not a line of options"),
        ("# --reservation=x", "is not a line of options"),
        ("--reservation=x\nrm -r /", "has a line break"),
    ],
)
def test_lines_of_a_preamble_that_cannot_be(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        check_line(line)


@pytest.mark.parametrize("line", ["--time-min=5", "--constraint a100", "-C a100 --export=NONE"])
def test_other_options_are_a_sites_own(line: str) -> None:
    assert check_line(line) == line


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path)


@pytest.mark.parametrize("text", ["replicas", "=3", "a..b=1", "a=[1"])
def test_overrides_that_are_none(text: str, file: Path) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load(file, overrides=[text])


@pytest.mark.parametrize(
    ("image", "container", "runs_it"),
    [
        *((None, None, "none"), ("/i.sif", None, "apptainer"), ("/i.sif", "enroot", "enroot")),
        (None, "none", "none"),
    ],
)
def test_a_container_is_used_where_there_is_an_image(
    image: str | None, container: str | None, runs_it: str, file: Path
) -> None:
    overrides = ["backend={type: slurm, partition: p}"]
    overrides += [f"image={image}"] if image else []
    overrides += [f"backend.container={container}"] if container else []
    backend = load(file, overrides=overrides).config.backend
    assert isinstance(backend, SlurmConfig)
    assert backend.container == runs_it


def test_a_container_without_an_image_is_refused_before_nodes_are_held_for_it(file: Path) -> None:
    overrides = ["backend={type: slurm, partition: p, container: pyxis}"]
    with pytest.raises(ConfigError, match="container is pyxis, but there is no image: set image"):
        load(file, overrides=overrides)


def test_an_image_that_nothing_runs_is_refused_unless_it_is_set_aside(
    file: Path, swarm_home: Path
) -> None:
    swarm_home.mkdir()
    (swarm_home / "defaults.yaml").write_text("image: /site.sif\n")
    native = "model: m\nbackend: {type: slurm, partition: p, container: none}\n"
    file.write_text(native)
    with pytest.raises(ConfigError, match=r"but image is /site\.sif: write image: null"):
        load(file)
    file.write_text(f"{native}image: null\n")
    config = load(file).config
    assert isinstance(config.backend, SlurmConfig)
    assert (config.image, config.backend.container) == (None, "none")


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("input: a.csv\noutput: b.csv\n", "a job's file: domyn-swarm job submit -f '.*/my x.yaml'"),
        ("name: p\nswarms: [{config: a.yaml}]\n", "a pool's file: domyn-swarm pool up"),
    ],
)
def test_a_file_of_another_kind_is_recognised(text: str, instead: str, tmp_path: Path) -> None:
    path = tmp_path / "my x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"This is {instead}"):
        load(path)


def test_a_swarms_file_is_recognised_where_a_job_or_a_pool_is_wanted(file: Path) -> None:
    for read in (load_pool, lambda path: read_job(path, Layer())):
        with pytest.raises(ConfigError, match="This is a swarm's configuration: domyn-swarm up"):
            read(file)


def test_a_name_that_cannot_be_has_a_close_one_proposed(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"--name: must be .*; for example schwarm"):
        load(file, name="Schwärm")


def test_an_override_that_is_wrong_is_named_as_one(file: Path) -> None:
    with pytest.raises(ConfigError, match="--set replicas: must be"):
        load(file, overrides=["replicas=none-at-all"])


def test_a_dumped_configuration_is_read_back_as_the_same(file: Path, tmp_path: Path) -> None:
    overrides = [
        "backend={type: slurm, partition: p, mounts: {/a: /b}}",
        "args=[--x, '{\"a\": 1}']",
    ]
    config = load(file, overrides=overrides).config
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_yaml(config))
    assert load(copy).config == config


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.recursive(
            st.integers() | st.text("xyz: '\"#\n", max_size=6) | st.booleans(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_yaml_is_read_as_it_was_written(values: dict[str, Any]) -> None:
    text = yaml.safe_dump({"engine_options": values})
    layer = parse_yaml(text, "x")
    assert layer.values == {"engine_options": values}
    lines = text.splitlines()
    for key in values:
        line = int(layer.places["engine_options", key].removeprefix("x:"))
        assert lines[line - 1].strip().startswith(f"{key}:")


def test_a_layer_that_changes_the_backend_takes_nothing_over_of_the_other(
    file: Path, swarm_home: Path
) -> None:
    swarm_home.mkdir()
    defaults = swarm_home / "defaults.yaml"
    defaults.write_text(
        "backend: {type: slurm, partition: p, qos: q}\nwatchdog: {http_timeout: 9}\n"
    )
    assert load(file).config.backend.type == "local"
    file.write_text("model: m\nbackend: {partition: other}\nwatchdog:\n  # nothing\n")
    loaded = load(file)
    assert isinstance(loaded.config.backend, SlurmConfig)
    assert (loaded.config.backend.partition, loaded.config.backend.qos) == ("other", "q")
    assert loaded.config.watchdog.http_timeout == 9
    assert loaded.provenance["backend.qos"] == f"{defaults}:1"
    assert loaded.provenance["backend.partition"] == f"{file}:2"
    assert loaded.provenance["watchdog.http_timeout"] == f"{defaults}:2"
    defaults.write_text("backend: slurm\n")
    assert load(file, overrides=["backend.partition=third"]).config.backend.type == "slurm"


def test_an_empty_value_takes_back_what_the_defaults_say(file: Path, swarm_home: Path) -> None:
    swarm_home.mkdir()
    (swarm_home / "defaults.yaml").write_text("image: x.sif\nport: 9000\n")
    file.write_text("model: m\nbackend: local\nimage:\nport: null\n")
    config = load(file).config
    assert (config.image, config.port) == (None, 8000)


@pytest.mark.parametrize("key", ["backend.mem", "backend.endpoint.mem"])
def test_memory_that_is_empty_is_not_asked_for(file: Path, swarm_home: Path, key: str) -> None:
    swarm_home.mkdir()
    (swarm_home / "defaults.yaml").write_text("backend: {mem: 480G, endpoint: {mem: 4G}}\n")
    needed = {"model": "m", "backend.type": "slurm", "backend.partition": "p"}
    file.write_text(nested(needed))
    loaded = load(file, overrides=[f"{key}=null"])
    assert value_of(loaded.config, key) is None
    assert "--set" in loaded.provenance[key]
    file.write_text(nested({**needed, key: ""}))
    loaded = load(file)
    assert value_of(loaded.config, key) is None
    assert str(file) in loaded.provenance[key]
    file.write_text(dump_yaml(loaded.config))
    assert load(file).config == loaded.config


def test_mistakes_of_both_files_are_told(file: Path, swarm_home: Path) -> None:
    swarm_home.mkdir()
    defaults = swarm_home / "defaults.yaml"
    defaults.write_text("a: [\n")
    file.write_text("")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert f"{defaults}:2: not YAML" in str(caught.value)
    assert f"{file}: is empty" in str(caught.value)
    defaults.write_text("prot: 9\n")
    file.write_text("model: m\nbackend: local\nport: x\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert f"{defaults}:1: prot: unknown key; did you mean port?" in str(caught.value)
    assert f"{file}:3: port" in str(caught.value)


def test_tls_needs_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tls.yaml"
    path.write_text("model: m\nbackend: local\nrouter:\n  tls_cert: cert.pem\n  tls_key: key.pem\n")
    router = load(path).config.router
    assert (router.tls_cert, router.tls_key) == (tmp_path / "cert.pem", tmp_path / "key.pem")
    for one in ("tls_cert", "tls_key"):
        text = f"model: m\nbackend: local\nrouter:\n  {one}: {tmp_path / 'key.pem'}\n"
        assert "router.tls_key: tls_cert and tls_key must be set together" in mistakes(
            text, tmp_path
        )


@pytest.mark.parametrize(
    ("name", "good"),
    [("a", True), ("a" * 40, True), ("a1-b2", True), ("a" * 41, False), ("a-", False)]
    + [(bad, False) for bad in ("1a", "-a", "A", "a_b", "a.b", "a b", "é", "", "a\n", "../a")],
)
def test_names(name: str, good: bool, file: Path) -> None:
    if good:
        assert load(file, name=name).config.name == name
    else:
        with pytest.raises(ConfigError, match="--name: must be lower-case letters"):
            load(file, name=name)


def test_a_time_limit_between_two_is_the_longest_where_one_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "swarm.yaml"
    limit = "{min: 1:00:00, max: 12:00:00}"
    path.write_text(f"model: m\nbackend: {{type: slurm, partition: [a, b], time_limit: {limit}}}\n")
    backend = load(path).config.backend
    assert isinstance(backend, SlurmConfig)
    assert (backend.longest_limit, backend.shortest_limit) == ("12:00:00", "1:00:00")
    assert backend.partition == "a,b"
    assert time_limits_s(backend.model_dump()["time_limit"]) == (3600.0, 43_200.0)
    assert time_limits_s("90") == (5400.0, 5400.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("36:00:00", 129600),
        ("2-12", 216000),
        ("1-1:2:3", 90123),
        ("2-12:30", 217800),
        ("0", float("inf")),
    ],
)
def test_times_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert time_limit_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1:99:00", "99 minutes; at most 59"),
        ("90:75", "75 seconds; at most 59"),
        ("1-24", "24 hours; at most 23"),
        ("1-2:60", "60 minutes; at most 59"),
    ],
)
def test_what_does_not_fit_its_place_in_a_time_is_no_time(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        time_limit_s(text)


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-1", "1h", "1-", "36:00:00\n", ":30"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="write a time like"):
        time_limit_s(text)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "image": st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
            "args": st.lists(
                st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4
            ),
            "revision": st.sampled_from(
                ["on", "1.10", "null", "~", "0x1F", "1:30", "2024-01-01", "<<"]
            ),
            "memory_gb": st.floats(0.1, 1e6),
            "replicas": st.integers(1, 100),
            "env": st.dictionaries(
                st.from_regex(r"\A[A-Z_]{1,3}\Z"), st.text("a'\"$\\\n`,: ", max_size=9)
            ),
        },
    )
)
@example({"image": "\x85"})
@example({"image": "a\u2028b\u00e9"})
def test_what_is_dumped_is_read_back_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Any]
) -> None:
    if "\0" in str(keys.get("image")) or any("\0" in word for word in keys.get("args", ())):
        return
    config = DomynLLMSwarmConfig.model_validate({"model": "m", "backend": "local", **keys})
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load(path).config == config
