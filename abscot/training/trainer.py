"""A trainer: DeepSpeed's model engine, and what every loop around it needs. It takes optimizer
steps of packed bins, records them, saves, stops when asked, and rehearses the most expensive bin
before the first step. Which bins, at which learning rate, is the loop's business (train_phase.py).
"""

import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.distributed

from abscot.common import hardware, ranks
from abscot.common.draws import keyed_seed
from abscot.common.errors import REQUEUE, UserError
from abscot.common.log import log
from abscot.common.process import StopRequest
from abscot.method.phases import HiddenPairs
from abscot.model import attention, checkpoint_dirs
from abscot.packing.batches import Batch
from abscot.packing.plan import StepPlan, rows_digest
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe, TrainConfig
from abscot.training import checkpoint
from abscot.training.checkpoint import TrainState
from abscot.training.model_engine import build_model_engine
from abscot.training.optimizer import set_lr, set_optimizer_step
from abscot.training.record import ChannelEntry, StepEntry, StepLog, Trackers, TrainLogMeta
from abscot.training.resume import newest
from abscot.training.together import on_first_rank


@dataclass(frozen=True)
class Work:
    """What a trainer is for. name: of its files, and of its random draws. hidden: which segments
    are hidden from which. checkpoints, train_log: where its files lie.
    """

    recipe: Recipe
    run: Run
    name: str
    hidden: HiddenPairs
    start: Path
    checkpoints: Path
    train_log: Path
    meta: TrainLogMeta


class Trainer:
    """Built on every rank. `state` says how far it is, has_ended whether it is whole; `step`,
    `measured` and `keep` take it on.
    """

    def __init__(self, work: Work, device: torch.device, rehearsal: Batch):
        """Loads the model of work.start, rehearses, and goes on from the newest checkpoint.

        Raises UserError for an engine or a checkpoint that cannot be, and where memory does not
        suffice; FloatingPointError where the rehearsal's loss is not finite.
        """
        self.work, recipe = work, work.recipe
        plan_hash, world_size = work.meta.plan_hash, ranks.world_size()
        saved = newest(work.checkpoints, plan_hash, work.train_log)
        self.model_engine = build_model_engine(
            recipe, work.start, work.checkpoints, device, work.name
        )
        began_s = time.monotonic()
        rehearse(self.model_engine, rehearsal, work.hidden)
        took_s, peak_gb = time.monotonic() - began_s, hardware.peak_memory_bytes() / 1e9
        log(
            f"{work.name}: rehearsed its most expensive bin, {rehearsal.labels.numel():,} tokens, "
            f"in {took_s:.1f} s; {peak_gb:.1f} GB at most"
        )
        self.optimizer = recipe.optimizer.name
        self.state = TrainState(
            step=0, epoch=0, tokens=0, plan_hash=plan_hash, world_size=world_size
        )
        if saved:
            self.state = checkpoint.load(self.model_engine, saved, self.optimizer)
            log(f"{work.name}: goes on from {saved}, made on {self.state.world_size} ranks")
        self.log = StepLog(work.train_log, self.state.step, work.meta)
        self.curves = Trackers(recipe, work.run, work.name, self.log.content)
        self.has_ended = on_first_rank(lambda: self.state.step >= self.log.content.end)
        self.stop = StopRequest(signal.SIGTERM, signal.SIGUSR1)
        self.clock = SaveClock(recipe.train, device)

    def step(
        self, plan: StepPlan, micro_batches: Sequence[Batch], lr: float, at_peak_s: float | None
    ) -> StepEntry:
        """Takes one optimizer step over this rank's micro-batches, and records it.

        The loss is the summed cross-entropy over the step's global number of supervised tokens,
        which the plan knows beforehand: the same for every world size and accumulation. DeepSpeed
        averages gradients over ranks, hence the factor `world_size`; it divides by nothing else, as
        accumulation is ours (gas = 1, boundary set by hand). at_peak_s: how long the step's FLOPs
        take where every device runs at its peak; None: unknown.

        Raises FloatingPointError, on all ranks at the same step, for a loss or gradient that is not
        finite, before weights made of it are saved.
        """
        began_s = time.monotonic()
        sums, digest = self._forward_backward(plan, micro_batches)
        set_lr(self.model_engine, lr)
        self.model_engine.step()
        grad_norm = float(self.model_engine.get_global_grad_norm())
        if not math.isfinite(grad_norm):  # DeepSpeed has then left the weights as they were
            refuse("gradient norm", grad_norm, plan, micro_batches)
        wall_s = time.monotonic() - began_s
        entry = StepEntry(
            step=plan.index,
            epoch=plan.epoch,
            loss=sums.total / plan.supervised_tokens,
            loss_z=sums.z / max(sums.n_z, 1),
            loss_y=sums.y / max(sums.n_y, 1),
            lr=lr,
            grad_norm=grad_norm,
            supervised_tokens=plan.supervised_tokens,
            tokens=int(sums.tokens),
            tokens_per_s=sums.tokens / wall_s,
            mfu=None if at_peak_s is None else at_peak_s / wall_s,
            peak_bytes=hardware.peak_memory_bytes(),
            wall_s=wall_s,
            examples=plan.examples,
            rows_digest=digest,
        )
        self._record(entry, stop_asked=sums.stop_asked > 0)
        return entry

    def _forward_backward(self, plan: StepPlan, micro_batches: Sequence[Batch]):
        """(sums over all ranks, digest of the rows that they fed); the gradients stand."""
        device, recipe = self.model_engine.device, self.work.recipe
        sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)
        for number, batch in enumerate(micro_batches, 1):
            self.model_engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            # Of LoRA's dropout.
            torch.manual_seed(keyed_seed(recipe.seed, self.work.name, plan.index, *batch.ids))
            scale = ranks.world_size() / plan.supervised_tokens
            losses = forward_backward(self.model_engine, batch, self.work.hidden, scale)
            sums[:-1] += torch.cat([losses, batch.counts().to(device)])
        finite_here = bool(sums[0].isfinite())
        sums[-1] = self.stop.asked
        rows = np.concatenate([batch.rows for batch in micro_batches])
        digest = torch.tensor(rows_digest(rows), device=device)
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(digest)
        found, planned = Sums(*sums.tolist()), plan.supervised_tokens
        if not math.isfinite(found.total):
            refuse("loss", found.total, plan, [] if finite_here else micro_batches)
        assert found.n_supervised == planned, (
            f"step {plan.index}: {found.n_supervised} supervised tokens, plan says {planned}"
        )
        return found, int(digest)

    def _record(self, entry: StepEntry, stop_asked: bool) -> None:
        self.stop_agreed = stop_asked  # by all ranks
        self.state = TrainState(
            step=entry.step + 1,
            epoch=entry.epoch,
            tokens=self.state.tokens + entry.tokens,
            plan_hash=self.state.plan_hash,
            world_size=ranks.world_size(),
        )
        self._note(entry)

    def measured(self, entry: ChannelEntry) -> None:
        """Records the channel after the step before; where it is open, that was the last step."""
        self._note(entry)

    def _note(self, entry: StepEntry | ChannelEntry) -> None:
        self.log.add(entry)
        self.curves.log(entry)
        self.has_ended = self.state.step >= self.log.content.end

    def keep(self) -> None:
        """Saves where it is due, at the last step, and where a rank was asked to stop.

        Raises SystemExit(75) in the last case, if steps are left: the same command goes on.
        """
        train = self.work.recipe.train
        if self.stop_agreed or self.has_ended or self.clock.is_due(self.state.step):
            self.log.flush()
            checkpoint.save(
                self.model_engine,
                self.work.checkpoints,
                self.state,
                train.keep_checkpoints,
                self.optimizer,
            )
            self.clock.saved()
        if self.stop_agreed and not self.has_ended:
            log(
                f"{self.work.name}: asked to stop, saved at step {self.state.step}; the same "
                "command goes on from there"
            )
            raise SystemExit(REQUEUE)

    def close(self) -> None:
        """The model is published: of the checkpoints the newest stays until an engine has agreed
        with the model.
        """
        self.log.flush()
        self.curves.close()
        torch.distributed.barrier()
        if ranks.rank() == 0:
            checkpoint_dirs.clear(self.work.checkpoints, keep=1)


def rehearse(model_engine, batch: Batch, hidden: HiddenPairs) -> None:
    """Two whole steps of the most expensive bin, with a loss and a learning rate of zero: the
    second beside the optimizer's state, which the first one makes, and with what ZeRO-3 fetches
    ahead once it knows the order.

    What does not fit fails now and not in an hour; weights and moments stay bit for bit what they
    were. A checkpoint is loaded into that state. Raises UserError where memory does not suffice,
    FloatingPointError where the loss is not finite.
    """
    model_engine.set_gradient_accumulation_boundary(True)
    try:
        for _ in range(2):
            total = float(forward_backward(model_engine, batch, hidden, 0.0)[0])
            if not math.isfinite(total):  # the same bin on all ranks
                raise FloatingPointError(
                    f"before step 1: loss is {total} at the plan's most expensive bin; rows: "
                    f"{', '.join(batch.ids)}"
                )
            set_lr(model_engine, 0.0)
            model_engine.step()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory at the most expensive bin of the plan ({batch.labels.numel():,} "
            "tokens) before step 1: lower train.capacity_tokens, set model.keep_attention=false, "
            "take more ranks or ds_configs/zero3_offload.json; launch/plan.py says what fits "
            f"({str(error).splitlines()[0]})"
        ) from error
    set_optimizer_step(model_engine, 0)


def forward_backward(model_engine, batch: Batch, hidden: HiddenPairs, scale: float) -> torch.Tensor:
    """Adds the gradient of the bin's summed loss times `scale`. Returns the sums (total, z, y),
    float64 [3].
    """
    batch = batch.to(model_engine.device)
    layout = attention.layout_of(batch, model_engine.module.backend, hidden)
    total, z, y = model_engine(
        batch.input_ids, batch.position_ids, batch.labels, batch.segment_id, layout
    )
    model_engine.backward(total * scale)
    return torch.stack([total.detach(), z, y]).double()


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


def refuse(what: str, value: float, plan: StepPlan, micro_batches: Sequence[Batch]) -> None:
    """Ends all ranks at the same step, before its weights are saved, and names the rows it was
    computed from.
    """
    everyone = [None] * ranks.world_size()
    torch.distributed.all_gather_object(everyone, [i for batch in micro_batches for i in batch.ids])
    named = ", ".join([i for ids in everyone for i in ids][:64])
    raise FloatingPointError(
        f"step {plan.index}: {what} is {value}; checkpoints up to the step before are intact; "
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
        waited = time.monotonic() - self.saved_s >= 60 * self.minutes
        due = torch.tensor(int(waited), device=self.device)
        torch.distributed.broadcast(due, 0)
        return bool(due)

    def saved(self) -> None:
        self.saved_s = time.monotonic()
