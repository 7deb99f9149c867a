"""Is what an engine computes the model that was trained? A probe tells."""

import math
from pathlib import Path

import torch

from abscot.common import files
from abscot.common.log import log
from abscot.method.phases import NOTHING_HIDDEN
from abscot.model import attention


def surprisals(module, batch, positions: int) -> list[float]:
    """-log p of the last `positions` tokens of a one-document batch, by the live weights and the
    head that is trained.

    Whoever loads the exported model next compares (inference.handover_gap). All ranks must call it.
    """
    decoder, head = module.parts
    module.eval()
    with torch.no_grad():
        layout = attention.prepare(batch, module.backend, NOTHING_HIDDEN)
        hidden = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=None,
            use_cache=False,
            abscot_layout=layout,
        ).last_hidden_state
        length = hidden.shape[1]
        return [
            float(
                head(*(x[:, t - 1 : t + 1] for x in (hidden, batch.input_ids, batch.segment_id)))[0]
            )
            for t in range(length - positions, length)
        ]


HANDOVER_KL = 0.015  # nats a token; bf16 kernels that differ stay far below


def check_handover(engine, model: Path) -> None:
    """Is what the engine computes the model that was trained? Export has left probabilities of the
    live weights in DONE.

    Per token the KL divergence is estimated as r - 1 - log r of the two probabilities' ratio r,
    which is never negative. Raises RuntimeError above HANDOVER_KL: then weights were lost on the
    way, and every trace would be another model's.
    """
    probe = files.read_done(model).get("probe") if files.is_done(model) else None
    if probe is None or len(probe["tokens"]) >= engine.window_tokens:
        return
    found = engine.surprisals(probe["tokens"], len(probe["surprisals"]))
    gaps = [live - served for live, served in zip(probe["surprisals"], found, strict=True)]
    kl = sum(math.exp(gap) - 1 - gap for gap in gaps) / len(gaps)
    if not kl <= HANDOVER_KL:
        raise RuntimeError(
            f"{model}: this engine's probabilities are not those of the trained weights (KL "
            f"{kl:.4f} a token, at most {HANDOVER_KL});"
            f" delete {model} to export it again"
        )
    log(f"{model.name}: the engine agrees with the trained weights, KL {kl:.1e} a token")


PROBE_TOKENS, PROBED = (
    512,
    32,
)  # of a fixed text, and its last ones, whose probabilities are recorded with the export
