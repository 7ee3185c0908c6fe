"""A folder of texts as rows: one JSON object for each file."""

import json
from pathlib import Path

with open("texts.jsonl", "w", encoding="utf-8") as rows:
    for path in sorted(Path("texts").glob("*.txt")):
        row = {"file": path.name, "text": path.read_text(encoding="utf-8").strip()}
        rows.write(json.dumps(row) + "\n")
