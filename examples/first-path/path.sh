#!/usr/bin/env bash
# From nothing to answers and back to nothing: what one types the first time.
set -euo pipefail

step() { printf '\n== %s\n' "$1"; }

step "A configuration with every key and what it means"
domyn-swarm init config --platform local --engine llamacpp --model smollm2-135m-instruct \
    --name first --output first.yaml --force

step "Is it right, can this machine do it, and what would happen?"
domyn-swarm config check first.yaml
domyn-swarm doctor -c first.yaml
domyn-swarm plan -c first.yaml

step "Bring it up"
name=$(domyn-swarm up -c first.yaml)
domyn-swarm status "$name"

step "Ask it by hand, as any OpenAI client does"
eval "$(domyn-swarm endpoint "$name" --env)"
python3 - <<'PYTHON'
import json
import os
import urllib.request

body = {"model": os.environ["MODEL"], "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 12}
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps(body).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
)
with urllib.request.urlopen(request, timeout=60) as reply:
    print("it says:", json.load(reply)["choices"][0]["message"]["content"])
PYTHON

step "Push a file through it"
domyn-swarm job submit --name "$name" --input questions.csv --output answers.jsonl --id-column id \
    --prompt '{{ question }}' --system 'Answer in one sentence.' \
    --job-kwargs '{"temperature": 0.2, "max_tokens": 32}' --external-id my-first-job

step "The same again asks nothing"
domyn-swarm job submit --name "$name" --input questions.csv --output answers.jsonl --id-column id \
    --prompt '{{ question }}' --system 'Answer in one sentence.' \
    --job-kwargs '{"temperature": 0.2, "max_tokens": 32}' --external-id again

step "What came of it"
domyn-swarm job status my-first-job
domyn-swarm job results my-first-job
domyn-swarm job verify my-first-job
domyn-swarm job report my-first-job --output report.html
domyn-swarm logs "$name" -n 3
domyn-swarm checkpoints list

step "Nothing keeps running"
domyn-swarm down "$name" -y
domyn-swarm swarm list
