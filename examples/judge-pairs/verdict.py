"""What a judgement looks like: the columns of the output, and what may stand in them."""

from typing import Literal

from pydantic import BaseModel


class Verdict(BaseModel):
    """Which answer is better, and how sure the judge is."""

    better: Literal["first", "second", "tie"]
    confidence: Literal["low", "medium", "high"]
