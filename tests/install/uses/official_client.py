"""Ask through OpenAI's own client; `demo` is up."""

import pyarrow as pa

from domyn_swarm import DomynLLMSwarm
from domyn_swarm.jobs import SwarmJob


class Asking(SwarmJob):
    """A row is an answer of the official client."""

    input_columns = ("prompt",)

    async def transform_item(self, item):
        """Ask."""
        reply = await self.client.openai.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": item}]
        )
        return reply.choices[0].message.content


table = pa.table({"prompt": ["one", "two", "three"]})
answered = DomynLLMSwarm.attach("demo").run(Asking(), table)
assert all(answered["result"].to_pylist()), answered.to_pylist()
print("answered")
