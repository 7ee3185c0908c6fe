"""A job as users write them: through the client that has the shape of OpenAI's."""

from __future__ import annotations

from typing_extensions import override

from domyn_swarm import SwarmJob


class UserJob(SwarmJob):
    """The same question as the built-in chat job asks."""

    input_columns = ("prompt",)
    output_schema = ("result",)

    @override
    async def transform_item(self, item: str) -> str | None:
        """One answer."""
        reply = await self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": item}]
        )
        content: str | None = reply.choices[0].message.content
        return content
