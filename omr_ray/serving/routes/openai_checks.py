"""What a request for images may not ask for, because it would not be done: refused, with the name of the field."""

from __future__ import annotations

from omr_ray.config.serve import ServeConfig
from omr_ray.serving.openai_schemas import MOST_IMAGES, ImageSettings
from omr_ray.serving.routes.errors import Refused


def check(asked: ImageSettings, config: ServeConfig) -> None:
    """Raises Refused, naming the field, for what would not be done."""
    painting, most = config.painting, min(MOST_IMAGES, config.limits.concurrent_rounds)
    if asked.model not in (None, config.name):
        raise Refused(404, f"there is no model {asked.model!r}; /v1/models lists them", code="model_not_found", param="model")
    if asked.count > most:
        raise _unsupported("n", f"n is at most {most} here, got {asked.count}; ask for the rest in another request")
    if asked.stream and asked.count > 1:
        raise _unsupported("n", "events do not say which of several images they are of; stream one image a request")
    if asked.partial_images and not asked.stream:
        raise _unsupported("partial_images", "partial images come in a stream; set stream, or leave partial_images out")
    if asked.output_compression is not None and asked.format == "png":
        raise _unsupported("output_compression", "png loses nothing; set output_format to jpeg or webp, or leave output_compression out")
    if asked.parent_round_id is not None and asked.session_id is None:
        raise _unsupported("parent_round_id", "a round is one of a session; give its session_id too")
    sizes = () if None in (painting.width, painting.height) else (f"{painting.width}x{painting.height}",)
    honoured: dict[str, tuple[object, ...]] = {
        "size": ("auto", *sizes),
        "quality": ("auto",),
        "background": ("auto", "opaque"),
        "moderation": ("auto",),
        "response_format": ("b64_json",),
        "num_inference_steps": (painting.steps,),
        "guidance_scale": (painting.guidance_scale,),
        "negative_prompt": ("",),
    }
    for name, values in honoured.items():
        value = getattr(asked, name, None)
        if value is not None and value not in values:
            takes = " or ".join(str(entry) or "an empty text" for entry in values)
            raise _unsupported(name, f"{name} can only be {takes} here, got {value!r:.60}; leave it out")


def _unsupported(param: str, message: str) -> Refused:
    return Refused(400, message, code="unsupported_value", param=param)
