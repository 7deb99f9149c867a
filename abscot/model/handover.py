"""From training to serving: a probe tells whether an engine computes the model that was trained."""

import math
import time
from pathlib import Path
from typing import ClassVar

import torch

from abscot.common import files
from abscot.common.errors import UserError
from abscot.common.log import log
from abscot.common.record import Record
from abscot.method.phases import NOTHING_HIDDEN
from abscot.model import attention, checkpoint_dirs


class Probe(Record):
    """A text, and -log p of its last tokens by the weights that were exported."""

    TOKENS: ClassVar[int] = 512
    POSITIONS: ClassVar[int] = 32

    tokens: list[int]
    surprisals: list[float]

    @classmethod
    def left_in(cls, model: Path) -> "Probe | None":
        """The probe in DONE of an exported model; None where the model was not trained here."""
        if not files.is_done(model):
            return None
        probe = files.read_done(model).get("probe")
        where, mend = f"{model / files.DONE}: meta.probe", f"delete {model} to export it again"
        return None if probe is None else cls.of(probe, where, mend)


class ExportMeta(Record):
    """DONE of an exported model or adapter: which training made it, from which model, and the state
    that the training ended in. applies_to: of an adapter, the model under it.
    """

    tag: str
    round: int
    phase: str
    start: str
    step: int
    epoch: int
    tokens: int
    plan_hash: str
    world_size: int
    probe: Probe
    applies_to: str | None = None


def surprisals(module, batch, positions: int) -> list[float]:
    """-log p of the last `positions` tokens of a one-document batch, by the live weights and the
    head that is trained.

    Whoever loads the exported model next compares (`check_handover`). All ranks must call it.
    """
    decoder, head = module.parts
    in_training = module.training
    module.eval()
    with torch.no_grad():
        layout = attention.layout_of(batch, module.backend, NOTHING_HIDDEN)
        hidden = attention.hidden_states(
            decoder, layout, input_ids=batch.input_ids, position_ids=batch.position_ids
        )
        length = hidden.shape[1]
        found = [
            float(
                head(*(x[:, t - 1 : t + 1] for x in (hidden, batch.input_ids, batch.segment_id)))[0]
            )
            for t in range(length - positions, length)
        ]
    module.train(in_training)
    return found


def divergence(live: list[float], served: list[float]) -> float:
    """KL in nats per token of two engines' surprisals of the same tokens, estimated as
    r - 1 - log r of the two probabilities' ratio r, which is never negative.
    """
    gaps = [one - other for one, other in zip(live, served, strict=True)]
    return sum(math.exp(gap) - 1 - gap for gap in gaps) / len(gaps)


def check_files(model: Path) -> None:
    """Compares the files of a published model with their checksums before an engine reads them.
    Raises UserError. A model from elsewhere has none.
    """
    if files.is_done(model):
        began_s = time.monotonic()
        files.refuse_unlisted(model)
        size = files.verify(model)
        log(f"{model.name}: {size / 1e9:.2f} GB verified in {time.monotonic() - began_s:.1f} s")


def check_handover(engine, model: Path, most_kl: float) -> None:
    """Compares the engine's probabilities with those that the export has left in DONE: they were
    computed by the live weights. Raises as `agree` does.
    """
    probe = Probe.left_in(model)
    if probe is None or len(probe.tokens) >= engine.window_tokens:
        return
    (found,) = engine.surprisals([probe.tokens], [len(probe.surprisals)])
    agree(model, probe, found, most_kl)


def agree(model: Path, probe: Probe, found: list[float], most_kl: float) -> None:
    """found: the probe's surprisals by an engine that has loaded `model`. Where they agree, the
    checkpoint kept for the model is let go.

    Raises UserError above most_kl: then weights were lost on the way, and every trace would be
    another model's.
    """
    kl = divergence(probe.surprisals, found)
    if not kl <= most_kl:
        kept = checkpoint_dirs.kept_for(model)
        raise UserError(
            f"{model}: this engine's probabilities are not those of the trained weights (KL "
            f"{kl:.4f} per token, inference.handover_kl is {most_kl:g}); ask a model that was "
            "trained in fp32 with --set inference.dtype=fp32"
            + (
                f", else delete {model}: its training then exports it again from {kept}"
                * bool(kept)
            )
        )
    log(f"{model.name}: the engine agrees with the trained weights, KL {kl:.1e} per token")
    checkpoint_dirs.let_go(model)
