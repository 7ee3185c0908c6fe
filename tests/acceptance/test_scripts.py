"""Programs of users' own beside a swarm, and jobs that run where they are submitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acceptance.conftest import Standing

ASK = """
import json, os, sys, urllib.request
key = open(os.environ["DOMYN_SWARM_API_KEY_FILE"]).read().strip()
body = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": sys.argv[1]}]}
request = urllib.request.Request(
    os.environ["ENDPOINT"] + "/v1/chat/completions",
    json.dumps(body).encode(),
    {"Authorization": "Bearer " + key, "Content-Type": "application/json"},
)
with urllib.request.urlopen(request) as reply:
    print("answered", json.load(reply)["choices"][0]["message"]["content"])
sys.exit(int(sys.argv[2]))
"""


def test_a_script_is_told_where_the_model_is(standing: Standing, tmp_path: Path) -> None:
    cli = standing.cli
    (tmp_path / "ask.py").write_text(ASK)
    submit = ("job", "submit-script", tmp_path / "ask.py", "--job-name", "mine")
    handle = json.loads(cli.installed(*submit, "--", "a b $HOME", "0").stdout)
    assert "answered" in Path(handle["log_path"]).read_text()
    seen = cli.json("job", "status", handle["job_id"])
    assert (seen["status"], seen["name"], seen["output"]) == ("succeeded", "mine", None)
    failed = cli(*submit, "--", "x", "3")
    assert failed.returncode == 6
    again = cli("job", "resume", json.loads(failed.stdout)["job_id"])
    assert again.returncode == 3
    assert "Submit the script again" in again.stderr
    missing = cli("job", "submit-script", tmp_path / "nothing.py")
    assert missing.returncode == 2
    assert "There is no file" in missing.stderr


def test_a_job_runs_here(standing: Standing) -> None:
    job = standing.job("here", 20)
    handle = json.loads(standing.cli.ok(*job.submission("--run-here")))
    assert handle["platform"] == "local"
    job.assert_complete()


def test_a_laptop_gives_jobs_no_cpus_of_their_own(standing: Standing) -> None:
    cli, job = standing.cli, standing.job("cpus", 20)
    before = cli.json("job", "list")
    refused = cli(*job.submission("--cpus", "4", "--mem", "8G"))
    assert refused.returncode == 2
    assert "does not support cpus and memory_gb" in refused.stderr
    for flags in (("--mem", "much"), ("--time", "soon"), ("--placement", "step", "--run-here")):
        assert cli(*job.submission(*flags)).returncode == 2
    for unlimited in ("0", "00:00:00"):  # it would be the default, silently
        refused = cli(*job.submission("--time", unlimited))
        assert (refused.returncode, "more than 0" in refused.stderr) == (2, True)
    assert cli.json("job", "list") == before
    limited = cli(*job.submission("--time", "10"))
    assert limited.returncode == 0
