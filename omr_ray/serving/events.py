"""What GET /v1/sessions/{id}/events tells, in order, each with an id that counts from 1 in its session.

    event: round      data: RoundView             a step of a round was taken, and is stored
    event: progress   data: Progress              step k of n of its image; of quick steps not each one
    event: preview    data: Preview               what the image would be if it were done now
    event: done       data: Done                  the round has ended: done, failed or cancelled

A client that was cut off sends the last id it saw as Last-Event-ID. Progress and previews of a round are forgotten when it ends.
"""

from __future__ import annotations

from typing import Literal

from omr_ray.dialogue.session import Status
from omr_ray.serving.schemas import Schema

Kind = Literal["round", "progress", "preview", "done"]
PASSING: tuple[Kind, ...] = ("progress", "preview")


class Progress(Schema):
    round: int
    step: int  # from 1
    steps: int


class Preview(Schema):
    round: int
    step: int
    b64_json: str  # PNG
    output_format: Literal["png"] = "png"


class Done(Schema):
    round: int
    status: Status
    seconds: float  # since it was stored
