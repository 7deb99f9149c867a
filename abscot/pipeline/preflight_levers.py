"""What makes training faster and can be off: is it on here, and how many hours is that?"""

import dataclasses

from abscot.model import kernels
from abscot.pipeline.preflight_hours import Work
from abscot.pipeline.speed import Levers, Speed
from abscot.recipe.schema import Recipe

PACKAGES = {
    "flash_attention_3": ("FlashAttention-3, on Hopper", kernels.GET_FLASH_ATTENTION_3),
    "liger": ("Liger (RMSNorm, RoPE, SwiGLU, loss)", kernels.GET_LIGER),
}
KEPT = ("attention's outputs kept", "--set model.keep_attention=true")


def levers(recipe: Recipe, work: Work, speeds: list[Speed]) -> list[dict]:
    """Each with its state and the GPU-hours of training that it saves, or that it would where it is
    off, the others being as they are.
    """
    rows, own = [], Levers.of(recipe)
    for field in dataclasses.fields(own):
        on = getattr(own, field.name)
        name, get = PACKAGES.get(field.name, KEPT)
        rows.append(
            {
                "name": name,
                "on": on,
                "state": _state(recipe, field.name, on),
                "gpu_hours": {s.gpu.name: _saved_hours(work, s, field.name) for s in speeds},
                "get": "" if on else get,
            }
        )
    return rows


def _state(recipe: Recipe, field: str, on: bool) -> str:
    if field in PACKAGES:
        unused = (
            getattr(kernels.active(None), field)
            and f"not for model.attention={recipe.model.attention}"
        )
        return "installed here" if on else unused or "not installed here"
    if not recipe.model.gradient_checkpointing:
        return "nothing is recomputed"
    return f"model.keep_attention is {str(on).lower()}"


def _saved_hours(work: Work, speed: Speed, field: str) -> float:
    without, with_it = (
        work.training_s(
            dataclasses.replace(speed, levers=dataclasses.replace(speed.levers, **{field: on}))
        )
        for on in (False, True)
    )
    return (without - with_it) / 3600
