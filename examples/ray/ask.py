"""A Ray Dataset in, a Ray Dataset out: actors ask, blocks hold the rows and the answers."""

import os

import ray

from domyn_swarm import DomynLLMSwarm
from domyn_swarm.jobs import TemplateJob

# Your cluster where RAY_ADDRESS names one, else one of this machine's own.
ray.init(
    address=os.environ.get("RAY_ADDRESS", "local"), log_to_driver=False, include_dashboard=False
)
ray.data.DataContext.get_current().enable_progress_bars = False

words = ["red", "green", "blue", "yellow", "black", "white"]
rows = ray.data.from_items([{"id": number, "word": word} for number, word in enumerate(words)])
ask = TemplateJob(prompt="Name something {{ word }}.", id_column="id", max_tokens=12)

answers = DomynLLMSwarm.attach("examples").run(ask, rows)

for row in answers.take_all():
    print(row["word"], "->", " ".join(row["result"].split()))
