#!/usr/bin/env bash
# A swarm of two small models answers some prompts. Run it through `make quickstart`.
# Whatever stops it: the next run goes on from there and asks no prompt twice.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=examples/quickstart
state=.quickstart
export DOMYN_SWARM_HOME="$PWD/$state"

step() { printf '\n== %s\n' "$1"; }

on_exit() {
    code=$?
    if [ "$code" -ne 0 ]; then
        printf '\nquickstart did not finish (exit code %s). What runs keeps running.\n' "$code" >&2
        printf '  go on:  make quickstart\n' >&2
        printf '  stop:   DOMYN_SWARM_HOME=%s .venv/bin/domyn-swarm down --all -y\n' "$state" >&2
    fi
}
trap on_exit EXIT

# What the swarm of an earlier, interrupted run looks like now; empty when there is none.
observed() {
    domyn-swarm status quickstart --json 2>/dev/null |
        python -c 'import json, sys; print(json.load(sys.stdin)["observed"])' 2>/dev/null || true
}

# Jobs that an earlier run submitted and that are still at work.
running_jobs() {
    domyn-swarm job list --name quickstart --json 2>/dev/null |
        python -c '
import json, sys
for job in json.load(sys.stdin)["jobs"]:
    if job["status"] in ("pending", "running"):
        print(job["job_id"])' 2>/dev/null || true
}

step "1. Write the prompts as Parquet"
python "$here/make_prompts.py" "$state/prompts.parquet"

step "2. Bring up two replicas of a small model behind one endpoint"
seen=$(observed)
if [ "$seen" = ready ]; then
    echo "quickstart is up already"
else
    if [ -n "$seen" ]; then
        echo "an earlier run left it behind ($seen): stopping that one first"
        domyn-swarm down quickstart -y
    fi
    domyn-swarm up -c "$here/config.yaml" >/dev/null
fi

step "3. Push the prompts through it"
for job in $(running_jobs); do
    echo "an earlier run's job $job is still at work: waiting for it"
    domyn-swarm job wait "$job" >/dev/null || true
done
domyn-swarm job submit --name quickstart \
    --input "$state/prompts.parquet" --output "$state/answers.parquet" \
    --id-column id --input-column prompt --output-column answer \
    --job-kwargs '{"system": "You are a helpful assistant. Answer briefly and correctly.", "temperature": 0.2, "max_tokens": 48}' \
    >"$state/job.json"

step "4. What the swarm looks like"
domyn-swarm status quickstart

step "5. Some of the answers (the model is tiny: expect mistakes)"
python "$here/show_answers.py" "$state/answers.parquet"

step "6. Stop the swarm"
domyn-swarm down quickstart -y

cat <<END

All answers:  $state/answers.parquet

What to try next, in this shell:
  source .venv/bin/activate
  export DOMYN_SWARM_HOME="\$PWD/$state"      # the state of this run; without it, ~/.domyn_swarm
  domyn-swarm up -c $here/config.yaml
  domyn-swarm job submit --input $here/prompts.csv --output answers.parquet --input-column prompt --limit 5
  domyn-swarm down quickstart
END
