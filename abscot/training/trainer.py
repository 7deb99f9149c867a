"""One optimizer step of packed bins, its rehearsal, when to save, when to stop."""

import math
import signal
import time
from typing import NamedTuple

import numpy as np
import torch.distributed

from abscot.common import hardware, ranks
from abscot.common.draws import keyed_seed
from abscot.common.errors import UserError
from abscot.method.phases import Phase
from abscot.model import attention
from abscot.packing.batches import Batch
from abscot.packing.plan import rows_digest
from abscot.recipe.schema import TrainConfig
from abscot.training.optimizer import set_lr, set_optimizer_step
from abscot.training.phase_data import PhaseData


def rehearse(trainer, data: PhaseData) -> None:
    """A whole step of the dearest bin with a loss and a learning rate of zero, before step 1.

    What does not fit fails now and not in an hour; weights and moments stay bit for bit what they
    were. It also makes the optimizer's state, into which a checkpoint is loaded. Raises UserError
    where memory does not suffice, FloatingPointError where the loss is not finite.
    """
    rows = data.plan.dearest_bin()
    batch = data.documents.batch(rows)
    trainer.set_gradient_accumulation_boundary(True)
    try:
        total = float(forward_backward(trainer, batch, data.training.phase, 0.0)[0])
        if not math.isfinite(total):  # the same bin on all ranks
            raise FloatingPointError(
                f"before step 1: loss is {total} at the plan's dearest bin; rows: "
                f"{', '.join(batch.ids)}"
            )
        set_lr(trainer, 0.0)
        trainer.step()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory at the dearest bin of the plan ({batch.labels.numel():,} tokens) "
            "before step 1: lower "
            "train.capacity_tokens, take more ranks or ds_configs/zero3_offload.json; "
            "launch/plan.py says what fits "
            f"({str(error).splitlines()[0]})"
        ) from error
    set_optimizer_step(trainer, 0)


def forward_backward(trainer, batch: Batch, phase: Phase, scale: float) -> torch.Tensor:
    """Adds the gradient of the bin's summed loss times `scale`. Returns the sums (total, z, y),
    float64 [3].
    """
    batch = batch.to(trainer.device)
    layout = attention.prepare(batch, trainer.module.backend, phase.hidden)
    total, z, y = trainer(
        batch.input_ids, batch.position_ids, batch.labels, batch.segment_id, layout
    )
    trainer.backward(total * scale)
    return torch.stack([total.detach(), z, y]).double()


def train_step(
    trainer, data: PhaseData, step, micro_batches, lr: float, stop_asked: bool
) -> tuple[dict, bool]:
    """One optimizer step over this rank's micro-batches. Returns its log entry and whether any rank
    was asked to stop.

    The loss is the summed cross-entropy over the step's global number of supervised tokens, which
    the plan knows beforehand: the same for every world size and accumulation. DeepSpeed averages
    gradients over ranks, hence the factor `world_size`; it divides by nothing else, as accumulation
    is ours (gas = 1, boundary set by hand).
    """
    began_s = time.monotonic()
    sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=trainer.device)
    for number, batch in enumerate(micro_batches, 1):
        trainer.set_gradient_accumulation_boundary(number == len(micro_batches))
        torch.manual_seed(
            keyed_seed(data.training.recipe.seed, data.training.tag, step.index, *batch.ids)
        )  # of LoRA's dropout
        losses = forward_backward(
            trainer, batch, data.training.phase, ranks.world_size() / step.supervised_tokens
        )
        sums[:-1] += torch.cat([losses, batch.counts().to(trainer.device)])
    finite_here = bool(sums[0].isfinite())
    sums[-1] = stop_asked
    digest = torch.tensor(
        rows_digest(np.concatenate([b.rows for b in micro_batches])), device=trainer.device
    )
    torch.distributed.all_reduce(sums)
    torch.distributed.all_reduce(digest)
    all_ = Sums(*sums.tolist())
    if not math.isfinite(all_.total):
        refuse("loss", all_.total, step, [] if finite_here else micro_batches)
    planned = step.supervised_tokens
    assert all_.n_supervised == planned, (
        f"step {step.index}: {all_.n_supervised} supervised tokens, plan says {planned}"
    )
    set_lr(trainer, lr)
    trainer.step()
    grad_norm = float(trainer.get_global_grad_norm())
    if not math.isfinite(grad_norm):  # DeepSpeed has then left the weights as they were
        refuse("gradient norm", grad_norm, step, micro_batches)
    wall_s = time.monotonic() - began_s
    entry = {
        "step": step.index,
        "epoch": step.epoch,
        "loss": all_.total / step.supervised_tokens,
        "loss_z": all_.z / max(all_.n_z, 1),
        "loss_y": all_.y / max(all_.n_y, 1),
        "lr": lr,
        "grad_norm": grad_norm,
        "supervised_tokens": step.supervised_tokens,
        "tokens": int(all_.tokens),
        "tokens_per_s": all_.tokens / wall_s,
        "mfu": data.mfu(step, wall_s),
        "peak_bytes": hardware.peak_memory_bytes(),
        "wall_s": wall_s,
        "examples": step.examples,
        "rows_digest": int(digest),
    }
    return entry, all_.stop_asked > 0


def summary(entry: dict) -> str:
    """A log entry in a line of progress."""
    mfu = f"  mfu {entry['mfu']:.1%}" if entry["mfu"] is not None else ""
    speed = f"{entry['tokens_per_s']:,.0f} tokens/s{mfu}  {entry['peak_bytes'] / 1e9:.1f} GB"
    return f"loss {entry['loss']:.4f}  lr {entry['lr']:.2e}  {speed}"


class Sums(NamedTuple):
    """What the ranks add up in a step: summed losses, token counts, and how many were asked to
    stop.
    """

    total: float
    z: float
    y: float
    tokens: float
    n_supervised: float
    n_z: float
    n_y: float
    stop_asked: float


def refuse(what: str, value: float, step, micro_batches) -> None:
    """Ends all ranks at the same step, before its weights are saved, and names the rows it was
    computed from.
    """
    everyone = [None] * ranks.world_size()
    torch.distributed.all_gather_object(everyone, [i for batch in micro_batches for i in batch.ids])
    named = ", ".join([i for ids in everyone for i in ids][:64])
    raise FloatingPointError(
        f"step {step.index}: {what} is {value}; checkpoints up to the step before are intact; "
        f"rows: {named}"
    )


class SaveClock:
    """When a checkpoint is due: by steps, or by minutes on rank 0's clock, on which the ranks
    agree.
    """

    def __init__(self, config: TrainConfig, device: torch.device):
        self.device = device
        self.steps, self.minutes = config.checkpoint_every_steps, config.checkpoint_every_minutes
        self.saved()

    def is_due(self, step: int) -> bool:
        if self.steps and step % self.steps == 0:
            return True
        if not self.minutes:
            return False
        due = torch.tensor(
            int(time.monotonic() - self.saved_s >= 60 * self.minutes), device=self.device
        )
        torch.distributed.broadcast(due, 0)
        return bool(due)

    def saved(self) -> None:
        self.saved_s = time.monotonic()


class StopRequest:
    """SIGTERM or SIGUSR1 asks for a checkpoint and an end; the ranks agree on the step in
    `train_step`.
    """

    def __init__(self):
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, *_):
        self.asked = True
