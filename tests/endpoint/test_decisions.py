"""What watchdog and collector decide, in virtual time; and what they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from domyn_swarm import watchdog, watchdog_rules
from domyn_swarm.backends.endpoint.own_endpoint import build_endpoint_spec
from domyn_swarm.backends.endpoint.replica_table import ReplicaTable, tokens_per_s
from domyn_swarm.backends.endpoint.router import SmgRouter
from domyn_swarm.backends.ledger import written_folder
from domyn_swarm.backends.watchdog_spec import build_watchdog_spec
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.model import ReplicaReport, ReplicaState, utc_now
from domyn_swarm.paths import SwarmPaths
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan, FailurePattern, ServingSpec
from endpoint.bench import API_KEY, COLLECTOR_KEY, Bench


@pytest.fixture
def spec(bench: Bench) -> watchdog_rules.Spec:
    path = bench.replica(
        probe_interval=30.0,
        readiness_timeout=600.0,
        quiet_seconds=120.0,
        unhealthy_restart_after=120.0,
        restart_backoff_initial=5.0,
        restart_backoff_max=60.0,
        max_restarts=6,
        progress_timeout=90.0,
        ray=None,
    ).spec_path
    return watchdog.load(str(path), "")


def test_pauses_double_up_to_the_longest_and_a_stable_engine_is_forgiven(spec: watchdog_rules.Spec):
    restarts = watchdog_rules.Restarts(spec)
    assert [restarts.next_delay(clean=False) for _ in range(7)] == [5, 10, 20, 40, 60, 60, None]
    restarts.served(watchdog_rules.STABLE_S - 1, answered=False)
    assert restarts.next_delay(clean=False) is None
    restarts.served(watchdog_rules.STABLE_S, answered=False)
    assert restarts.next_delay(clean=False) == 5
    assert restarts.total == 7
    assert restarts.next_delay(clean=True) is None


@pytest.mark.parametrize(
    ("policy", "clean", "starts"),
    [
        ("on-failure", True, 0),
        ("on-failure", False, 2),
        ("never", False, 0),
        ("never", True, 0),
        ("always", True, 2),
        ("always", False, 2),
    ],
)
def test_policies(spec: watchdog_rules.Spec, policy: str, clean: bool, starts: int):
    restarts = watchdog_rules.Restarts(spec._replace(restart_policy=policy, max_restarts=2))
    delays = [restarts.next_delay(clean) for _ in range(4)]
    assert delays == [5, 10][:starts] + [None] * (4 - starts)
    assert restarts.total == starts


@pytest.mark.parametrize(
    ("serves_s", "tokens", "given_up_after"),
    [
        (30, 0, 6),
        (599, 0, 6),
        (600, 0, None),
        (30, 30, 6),  # the watchdog's own request
        (5, 500, 24),  # each time some requests are answered: four times as often
        (599, 500, 24),
        (600, 500, None),
        (30, None, 6),  # engines without counters
    ],
)
def test_an_engine_that_keeps_dying_is_given_up_unless_it_served_long_in_between(
    spec: watchdog_rules.Spec, serves_s: int, tokens: int | None, given_up_after: int | None
):
    """A day of it, from start to death."""
    restarts, now = watchdog_rules.Restarts(spec), 0.0
    while now < 24 * 3600:
        now = lived(restarts, spec, now, serves_s, tokens)
        delay = restarts.next_delay(clean=False)
        if delay is None:
            break
        now += delay
    assert (None if now >= 24 * 3600 else restarts.total) == given_up_after


def lived(
    restarts: watchdog_rules.Restarts,
    spec: watchdog_rules.Spec,
    now: float,
    serves_s: float,
    tokens: int | None,
) -> float:
    """An engine starts, writes so many tokens, and dies; when."""
    health = watchdog_rules.Health(spec, now)
    now += 20
    health.sampled(now, None if tokens is None else 4, 0)
    health.alive(now, 0, None)
    now += serves_s
    health.sampled(now, None if tokens is None else 4 + tokens, 0)
    restarts.served(now - health.ready_since, health.answered)
    return now


def test_deadly_requests_cost_no_restart_that_an_engine_needs_to_start(spec: watchdog_rules.Spec):
    """Two rows that kill three engines each, and then one that does not get ready any more."""
    spec = spec._replace(max_restarts=3)
    restarts, now = watchdog_rules.Restarts(spec), 0.0
    for tokens in (5000, 500, 0, 500, 0, 500):  # one may die of its first request
        now = lived(restarts, spec, now, 5, tokens)
        assert restarts.next_delay(clean=False) is not None
    delays = [restarts.next_delay(clean=False) for _ in range(3)]
    assert delays == [10, 20, None]  # it crashes as it starts


def test_an_unhealthy_engine_that_recovers_in_time_is_left_alone(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=0)
    health.alive(10, 0, None)
    for bout in range(100, 3600, 200):  # sick for 110 s, well, sick again
        for now in (bout, bout + 1, bout + 110):
            health.failed(now, "/health answered 503")
            assert health.reason_to_restart(now) is None
        assert health.state == "unhealthy"
        health.alive(bout + 111, 0, None)
        assert health.state == "ready"


RAY = {"gpus": 8, "status_grace_s": 60, "probe_interval_s": 30, "probe_timeout_s": 5}


@pytest.mark.parametrize(
    ("seen", "lost_at"),
    [
        ({0: None, 300: 4, 3600: 4}, None),  # they have not joined: no loss, whatever it takes
        ({0: 8, 3600: 16}, None),
        ({0: 8, 100: 4, 159: 8, 200: 4, 259: 8}, None),  # each time back within the grace period
        ({0: 8, 100: 4}, 160),
        ({0: 8, 100: None}, 160),  # Ray itself is gone
        ({0: 8, 100: 4, 130: None, 150: 4}, 160),
        ({0: 2, 50: 8, 100: 7}, 160),
    ],
)
def test_nodes_that_were_there_are_lost_after_the_grace_period(
    seen: dict[int, float | None], lost_at: int | None
):
    nodes, gpus, found = watchdog_rules.RayNodes(RAY), None, None
    for now in range(4000):
        gpus = seen.get(now, gpus)
        nodes.saw(gpus, float(now))
        if found is None and nodes.lost:
            found = now
    assert found == lost_at
    if lost_at is not None:
        assert "of 8 GPUs are left" in str(nodes.lost)


def test_ray_is_asked_often_while_nodes_are_missing(spec: watchdog_rules.Spec):
    nodes = watchdog_rules.RayNodes(RAY)
    assert nodes.next_question_s() == 1.0
    nodes.saw(8, 0.0)
    assert nodes.next_question_s() == 30.0
    nodes.saw(None, 30.0)
    assert nodes.next_question_s() == 1.0
    nodes.saw(8, 31.0)
    assert nodes.next_question_s() == 30.0


def test_one_missed_probe_is_no_illness(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=0)
    assert (health.state, health.next_probe_s()) == ("starting", 0.1)
    health.alive(10, 0, None)
    assert (health.state, health.next_probe_s()) == ("ready", 30)
    health.failed(40, "/health answered 503")
    assert (health.state, health.next_probe_s()) == ("ready", 1)
    assert health.reason_to_restart(500) is None
    health.failed(41, "/health answered 503")
    assert (health.state, health.reason) == ("unhealthy", "/health answered 503")
    assert health.reason_to_restart(159) is None
    assert health.reason_to_restart(160) == "unhealthy for 120 s: /health answered 503"
    health.alive(161, 0, None)
    assert (health.state, health.reason) == ("ready", None)
    assert health.reason_to_restart(1000) is None


LATE = "/health did not answer within 2 s"


def test_an_engine_that_answers_late_is_well_while_tokens_come(spec: watchdog_rules.Spec):
    """An hour under thousands of requests: no probe is answered in time."""
    health = watchdog_rules.Health(spec, now=0)
    health.alive(10, 0, None)
    for now in range(12, 3600, 4):
        health.sampled(now, now, 9)
        health.late(now + 2, LATE)
        assert health.state == "ready"
        assert health.reason_to_restart(now + 2) is None


def test_one_whose_tokens_stopped_is_ill_when_it_goes_on_not_to_answer(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=0)
    health.alive(10, 0, None)
    health.sampled(12, 100, 9)
    health.sampled(16, 200, 9)
    found = None
    for now in range(18, 300, 3):
        health.sampled(now, 200, 9)  # or not at all
        health.late(now, LATE)
        if found is None and health.state == "unhealthy":
            found = now
            assert health.reason == LATE
    assert found is not None
    assert watchdog_rules.BUSY_S < found - 16 <= watchdog_rules.BUSY_S + 7
    health.sampled(301, 300, 9)  # it was a long pause
    health.late(303, LATE)
    assert health.state == "ready"


@pytest.mark.parametrize("progress", [None, 7.0])
def test_one_that_is_idle_has_no_such_excuse(spec: watchdog_rules.Spec, progress: float | None):
    health = watchdog_rules.Health(spec, now=0)
    health.alive(10, 0, progress)
    for now in (12, 16, 20):
        health.sampled(now, progress, 0)
    health.late(40, LATE)
    assert health.state == "ready"
    health.late(43, LATE)
    assert (health.state, health.reason) == ("unhealthy", LATE)


def test_one_that_has_just_been_given_work_has_time_for_the_first_token(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=0)
    health.alive(10, 0, 5)
    health.sampled(40, 5, 0)
    health.sampled(44, 5, 200)
    for now in range(46, 64, 3):
        health.late(now, LATE)
        assert health.state == "ready"
    for now in (66, 69):
        health.sampled(now, 5, 200)
        health.late(now, LATE)
    assert health.state == "unhealthy"


def test_what_the_engine_itself_says_is_wrong_is_so_however_many_tokens_come(
    spec: watchdog_rules.Spec,
):
    health = watchdog_rules.Health(spec, now=0)
    health.alive(10, 0, None)
    for now in (40, 41):
        health.sampled(now, now, 9)
        health.failed(now, "/health answered 503")
    assert health.state == "unhealthy"


@pytest.mark.parametrize(
    ("said", "gone_at"),
    [
        ({0: "refused"}, 2),  # it has ended, and its router with it
        ({0: "silent"}, 18),  # by then it has taken a replica that it does not hear out
        ({0: "silent", 5: "refused"}, 7),
        ({0: "refused", 1: "silent"}, 18),  # another node has its address
        ({0: "refused", 1: "answered", 2: "refused"}, 4),
        ({0: "silent", 10: "answered"}, None),
    ],
)
def test_when_nobody_sends_requests_for_the_collector_any_more(
    said: dict[int, str], gone_at: int | None
):
    contact, last, found = watchdog_rules.Contact(heartbeat_s=5.0), "answered", None
    for now in range(60):
        last = said.get(now, last)
        if last == "answered":
            contact.answered()
        else:
            contact.failed(1000.0 + now, ended=last == "refused")
        if found is None and contact.gone(1000.0 + now):
            found = now
    assert found == gone_at


def test_only_a_collector_that_has_ended_makes_a_replica_an_orphan():
    contact = watchdog_rules.Contact(heartbeat_s=5.0)
    contact.failed(1000.0, ended=True)
    contact.failed(1050.0, ended=False)  # it is there, and does not answer
    contact.failed(1051.0, ended=True)
    assert [contact.ended(now, 60.0) for now in (1060.0, 1110.0, 1111.0)] == [False, False, True]
    contact.answered()
    assert not contact.ended(2000.0, 60.0)


def test_an_engine_has_its_time_to_get_ready(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=100)
    health.failed(699, "/health answered 503")
    assert health.reason_to_restart(699) is None
    assert health.reason_to_restart(700) == (
        "not ready after 600 s (/health answered 503), and it neither prints nor reads any more; "
        "if it needs longer, set watchdog.readiness_timeout: 1200"
    )


def test_an_engine_that_prints_what_it_is_asked_in_vain_does_not_load(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=0)
    for now in range(0, 600, 10):
        health.failed(now, "/helth answered 404", refused=True)
        health.loaded_at = now
        assert not health.loads(now)
    health.loaded_at = 600
    assert "/helth answered 404" in health.reason_to_restart(600)
    health.failed(600, "/helth: Connection refused")
    assert health.loads(600)


@pytest.mark.parametrize(
    ("loads_until", "ends_at", "why"),
    [
        (0, 600, "neither prints nor reads"),
        (300, 600, "neither prints nor reads"),
        (599, 719, "neither prints nor reads"),
        (2000, 2120, "neither prints nor reads"),
        (10_000, 3600, "it still loads"),  # six times the limit
    ],
)
def test_an_engine_that_loads_has_longer(
    spec: watchdog_rules.Spec, loads_until: int, ends_at: int, why: str
):
    health = watchdog_rules.Health(spec, now=0)
    for now in range(10_000):
        if now <= loads_until and now % 100 == loads_until % 100:  # with pauses
            health.loaded_at = now
        if (found := health.reason_to_restart(now)) is not None:
            break
    assert now == ends_at
    assert why in found
    late = "not ready after 600 s; it still loads, and has 3600 s"
    assert health.overtime(599) is None
    assert health.overtime(600) == late
    assert "set watchdog.readiness_timeout: 1200" in found


def test_an_engine_that_was_too_slow_twice_is_not_tried_again(spec: watchdog_rules.Spec):
    restarts = watchdog_rules.Restarts(spec)
    tried = [restarts.next_delay(clean=False, slow=slow) for slow in (True, False, True, True)]
    assert tried == [5, 10, 20, None]


def test_progress_is_judged_only_while_requests_wait(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=0)
    for now in range(0, 300, 30):
        health.alive(now, 0, 7)  # idle
    assert health.reason_to_restart(300) is None
    for now in range(300, 600, 30):
        health.alive(now, 3, now)  # busy
    assert health.reason_to_restart(600) is None
    for now in (600, 630, 660):
        health.alive(now, 3, 570)  # stuck: seen first at 600
    assert health.reason_to_restart(689) is None
    assert health.reason_to_restart(690) == "no progress for 90 s while requests wait"
    health.alive(690, 3, 571)
    assert health.reason_to_restart(900) is None


def test_engines_without_counters_are_not_judged_by_them(spec: watchdog_rules.Spec):
    health = watchdog_rules.Health(spec, now=0)
    for now in range(0, 600, 30):
        health.alive(now, 3, None)
    assert health.reason_to_restart(600) is None


def test_metrics_add_up_over_labels():
    text = '# HELP x y\nx{a="1 }"} 2\nx{a="2"} 3.5 1700000000\nns:y 1e2\nbad word\nz NaN\n'
    found = watchdog_rules.parse_metrics(text)
    assert found["x"] == 5.5
    assert found["ns:y"] == 100


def test_the_rate_of_tokens_is_that_between_two_samples_of_one_engine():
    def report(sequence: int, tokens: float | None, sampled_at: float, **more: Any):
        fields = {"engine_pid": 7, "incarnation": "a", **more}
        return ReplicaReport(
            replica=0,
            state=ReplicaState.READY,
            sequence=sequence,
            generated_tokens=tokens,
            sampled_at=sampled_at,
            **fields,
        )

    table = ReplicaTable(1, stale_after_s=10)
    rates = []
    for one in (
        report(1, 100, 50.0),
        report(2, 400, 60.0),
        report(3, 400, 60.0),  # a heartbeat between two samples
        report(4, 400, 70.0),
        report(5, None, 80.0),  # the engine did not say
    ):
        table.take(one, 0.0, utc_now())
        rates.append(table.last(0).tokens_per_s)
    assert rates == [None, 30.0, 30.0, 0.0, None]
    first = report(1, 100, 50.0)
    assert tokens_per_s(first, report(2, 400, 60.0, engine_pid=8)) is None
    assert tokens_per_s(first, report(2, 400, 60.0, incarnation="b")) is None
    assert tokens_per_s(first, report(2, 20, 60.0)) is None


def test_an_old_incarnation_never_comes_back():
    table = ReplicaTable(1, stale_after_s=10)

    def take(incarnation: str, sequence: int) -> str:
        report = ReplicaReport(
            replica=0, state=ReplicaState.READY, incarnation=incarnation, sequence=sequence
        )
        return table.take(report, 0.0, utc_now()).value

    assert [take("a", 1), take("b", 1), take("a", 2), take("c", 0), take("b", 9)] == [
        *("taken", "taken", "superseded", "taken", "superseded"),
    ]


def test_serving_needs_a_fresh_report():
    table = ReplicaTable(1, stale_after_s=10)
    report = ReplicaReport(
        replica=0, state=ReplicaState.READY, url="http://x:1", incarnation="a", sequence=1
    )
    table.take(report, 100.0, utc_now())
    assert tuple(table.serving(110.0).values()) == ("http://x:1",)
    assert tuple(table.serving(110.1).values()) == ()


@pytest.mark.parametrize("state", ["ready", "starting", "exited"])
def test_of_two_replicas_at_one_port_the_later_one_is_there(state: str):
    table = ReplicaTable(2, stale_after_s=10)

    def take(replica: int, state: str, url: str, sequence: int = 1) -> None:
        report = ReplicaReport(
            replica=replica,
            state=ReplicaState(state),
            url=url,
            incarnation=str(replica),
            sequence=sequence,
        )
        table.take(report, 100.0, utc_now())

    take(0, state, "http://x:1")
    take(1, "starting", "http://x:1")
    first = table.last(0)
    assert (first.state, first.url) == ("exited" if state == "exited" else "unhealthy", None)
    take(1, "ready", "http://x:1", 2)
    assert tuple(table.serving(101.0).values()) == ("http://x:1",)
    take(0, "ready", "http://x:2", 2)  # its next engine
    assert tuple(table.serving(101.0).values()) == ("http://x:2", "http://x:1")


@pytest.fixture
def planned(tmp_path: Path) -> tuple[DeploymentPlan, DeploymentContext, SwarmPaths]:
    config = DomynLLMSwarmConfig.model_validate(
        {
            "model": "m",
            "engine": "sim",
            "replicas": 2,
            "backend": {"type": "local"},
            "home_directory": str(tmp_path),
            "env": {"WON": "by the user", "ODD": "a 'b' $(c) \n,`d`"},
            "watchdog": {"probe_interval": 4, "http_path": "/alive"},
        }
    )
    serving = ServingSpec(
        argv=("serve", "--port", "{port}", "it's $HOME", "{replica}", "no {replica}"),
        env={"WON": "by the engine", "ENGINE": "1"},
        key_env="KEY",
        failure_patterns=(FailurePattern(pattern="x", cause="c", hint="h", retryable=False),),
    )
    ctx = DeploymentContext(
        tag="t", serving_spec=serving, timeout_s=1, interpreter="python3", shared_env={"S": "1"}
    )
    paths = SwarmPaths.of(tmp_path, "n")
    return PlanBuilder(config, "n").build(), ctx, paths


def test_the_watchdog_understands_the_spec_that_is_built(
    planned: tuple[DeploymentPlan, DeploymentContext, SwarmPaths], tmp_path: Path
):
    plan, ctx, paths = planned
    built = build_watchdog_spec(plan, ctx, paths, 1, host="127.0.0.1")
    (tmp_path / "spec.json").write_text(json.dumps(built))
    spec = watchdog.load(str(tmp_path / "spec.json"), "")
    assert spec.argv == ["serve", "--port", "{port}", "it's $HOME", "1", "no {replica}"]
    assert spec.env == {**plan.env, "ENGINE": "1", "S": "1"}
    assert spec.health_path == "/alive"
    assert spec.heartbeat_seconds == 4
    assert spec.key_file == str(paths.api_key)
    assert spec.failure_patterns[0]["retryable"] is False
    assert Path(spec.ledger_file) == written_folder(paths, "t") / "replica-1.jsonl"
    over_nodes = {"gpus_per_replica": 16, "nodes_per_replica": 2}
    layout = plan.layout.model_copy(update=over_nodes)
    wide = build_watchdog_spec(plan.model_copy(update={"layout": layout}), ctx, paths, 1, host="h")
    assert (wide["gpus"], wide["power_gpus"]) == (16, 0)  # it sees those of one node alone
    named_in_docs = set(watchdog_rules.Spec._fields)
    from domyn_swarm.backends import watchdog_spec

    assert all(name in (watchdog_spec.__doc__ or "") for name in named_in_docs)


def test_a_node_that_is_not_known_yet_names_itself(
    planned: tuple[DeploymentPlan, DeploymentContext, SwarmPaths], tmp_path: Path
):
    built: dict[str, Any] = build_watchdog_spec(*planned, 0, host="")
    (tmp_path / "spec.json").write_text(json.dumps(built))
    assert watchdog.load(str(tmp_path / "spec.json"), "").host


def test_the_endpoint_is_told_no_model_and_no_key(
    planned: tuple[DeploymentPlan, DeploymentContext, SwarmPaths],
):
    plan, ctx, paths = planned
    spec = build_endpoint_spec(plan, ctx, paths, host="127.0.0.1")
    assert spec.health_path == "/alive"
    assert spec.stale_after_s == 12
    assert spec.replicas == 2
    assert not {API_KEY, COLLECTOR_KEY} & set(spec.model_dump_json().split('"'))
    assert json.loads(SmgRouter().manifest(["http://a:1"])) == {
        "version": 1,
        "workers": [{"url": "http://a:1"}],
    }


@pytest.mark.parametrize(
    ("groups", "file", "counted"),
    [
        ("0::/job_7/step_0\n", "job_7/step_0/memory.events", "low 0\noom 5\noom_kill 3\n"),
        (
            "9:name=systemd:/\n4:cpu,memory:/slurm_n1/job_7\n0::/\n",
            "memory/slurm_n1/job_7/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        ),
        ("4:memory:/of/the/host\n", "memory/memory.oom_control", "oom_kill 3\n"),
    ],
)
def test_the_kernels_kills_for_memory_are_counted_in_both_kinds_of_groups(
    tmp_path: Path, groups: str, file: str, counted: str
) -> None:
    (own := tmp_path / "cgroup").write_text(groups)
    (mounted := tmp_path / "mounted").mkdir()
    assert watchdog.memory_kills(str(own), str(mounted)) == 0  # nothing is said
    (mounted / file).parent.mkdir(parents=True, exist_ok=True)
    (mounted / file).write_text(counted)
    assert watchdog.memory_kills(str(own), str(mounted)) == 3
    assert watchdog.memory_kills(str(tmp_path / "no"), str(mounted)) == 0
