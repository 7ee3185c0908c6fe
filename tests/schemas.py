"""The JSON Schemas of what commands print, kept under `tests/golden`.

    python tests/schemas.py       write them anew (`make golden`): when a change is meant

A command with `--json` stands in `PRINTS` with the record that it prints.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema

GOLDEN = Path(__file__).parent / "golden"

_REQUESTS = "domyn_swarm.services.requests"
_SNAPSHOT = "domyn_swarm.swarm.snapshot"
_POOLS = "domyn_swarm.services.pools"
_CHECKPOINTS = "domyn_swarm.services.checkpoints"
_CONFIG_FILES = "domyn_swarm.services.config_files"
RECORDS = {
    "checkpoint-removals": f"{_CHECKPOINTS}:RemovalReport",
    "checkpoints": f"{_CHECKPOINTS}:CheckpointList",
    "config-report": f"{_CONFIG_FILES}:ConfigReport",
    "defaults": f"{_CONFIG_FILES}:NewDefaults",
    "description": "domyn_swarm.services.description:SwarmDescription",
    "database-revision": "domyn_swarm.services.database:DatabaseRevision",
    "deletions": f"{_REQUESTS}:DownReport",
    "dry-run": "domyn_swarm.jobs.dry_run:DryRun",
    "endpoint": f"{_REQUESTS}:EndpointInfo",
    "examination": "domyn_swarm.services.doctor:Examination",
    "job": f"{_SNAPSHOT}:JobSnapshot",
    "job-forecast": "domyn_swarm.jobs.forecasting:JobForecast",
    "job-failures": f"{_REQUESTS}:JobFailures",
    "job-handle": "domyn_swarm.model:JobHandle",
    "job-report": "domyn_swarm.services.report_records:JobReport",
    "job-results": f"{_REQUESTS}:JobResults",
    "jobs": f"{_SNAPSHOT}:JobList",
    "launch": f"{_REQUESTS}:UpResult",
    "output-verification": "domyn_swarm.batch.inspection.verification:OutputVerification",
    "preview": "domyn_swarm.jobs.preview:Preview",
    "plan": f"{_REQUESTS}:PlanReport",
    "pool": f"{_POOLS}:PoolStatus",
    "pool-deletions": f"{_POOLS}:PoolDownReport",
    "pool-launch": f"{_POOLS}:PoolUpReport",
    "campaign-rehearsal": "domyn_swarm.swarm.campaign:CampaignRehearsal",
    "pruning": "domyn_swarm.swarm.pruning:PruneReport",
    "swarm": f"{_SNAPSHOT}:SwarmSnapshot",
    "swarms": f"{_SNAPSHOT}:SwarmList",
    "usage": "domyn_swarm.services.usage_report:UsageReport",
    "versions": "domyn_swarm.services.versions:Versions",
}

PRINTS = {
    "init defaults": "defaults",
    "config check": "config-report",
    "checkpoints list": "checkpoints",
    "checkpoints rm": "checkpoint-removals",
    "pool up": "pool-launch",
    "pool status": "pool",
    "pool down": "pool-deletions",
    "up": "launch",
    "wait": "launch",
    "status": "swarm",
    "down": "deletions",
    "scale": "swarm",
    "endpoint": "endpoint",
    "plan": "plan",
    "rehearse": "campaign-rehearsal",
    "doctor": "examination",
    "usage": "usage",
    "version": "versions",
    "db upgrade": "database-revision",
    "db stamp": "database-revision",
    "db prune": "pruning",
    "swarm list": "swarms",
    "swarm describe": "description",
    "job submit": "job-handle",
    "job submit --dry-run": "dry-run",
    "job submit --forecast": "job-forecast",
    "job preview": "preview",
    "job submit-script": "job-handle",
    "job resume": "job-handle",
    "job retry-failed": "job-handle",
    "job status": "job",
    "job list": "jobs",
    "job wait": "job",
    "job cancel": "job",
    "job failures": "job-failures",
    "job verify": "output-verification",
    "job report": "job-report",
    "job results": "job-results",
}


def schema(name: str) -> dict[str, Any]:
    """The schema of a record as it is now."""
    module, _, kind = RECORDS[name].partition(":")
    found: dict[str, Any] = getattr(import_module(module), kind).model_json_schema(
        mode="serialization"
    )
    return found


def golden(name: str) -> dict[str, Any]:
    """The schema that was promised."""
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return found


def fits(document: Any, command: str) -> None:
    """Raise when a document is not what the command promises."""
    jsonschema.Draft202012Validator(golden(PRINTS[command])).validate(document)


def write() -> None:
    """Promise what is."""
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.json"):
        old.unlink()
    for name in RECORDS:
        text = json.dumps(schema(name), indent=1, sort_keys=True, ensure_ascii=False)
        (GOLDEN / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
