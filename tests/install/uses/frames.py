"""Ask about the rows of a frame of the library that is named; `demo` is up."""

import importlib
import sys

from domyn_swarm import DomynLLMSwarm
from domyn_swarm.jobs import ChatCompletionJob

library = importlib.import_module(sys.argv[1])
frame = library.DataFrame({"prompt": ["one", "two", "three"]})
answered = DomynLLMSwarm.attach("demo").run(ChatCompletionJob(input_columns=("prompt",)), frame)
assert type(answered) is library.DataFrame, type(answered)
assert len(answered) == 3
assert all(answered["result"])
print("answered")
