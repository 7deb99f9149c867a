"""One phase of one round: from its inputs to its exported model. The loop is `train` ->
`train_step`.
"""

import math
import signal
import time
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed

from abscot import (
    attention,
    batches,
    checkpoint,
    dist,
    engine,
    estimate,
    export,
    model,
    packing,
    paths,
    rounds,
    trackers,
)
from abscot.checkpoint import TrainState
from abscot.config import Recipe, TrainConfig, UserError
from abscot.estimate import ModelShape
from abscot.paths import Run
from abscot.phases import Phase
from abscot.shards import ShardStore
from abscot.steplog import StepLog
from abscot.traces import TraceSet
from abscot.vocab import AbstractVocab, keyed_seed

PROBE_TOKENS, PROBED = (
    512,
    32,
)  # of a fixed text, and its last ones, whose probabilities are recorded with the export


def train(recipe: Recipe, phase: Phase, round_: int) -> None:
    """Trains `phase` of `round_` and publishes its model; goes on from the newest checkpoint if
    there is one.

    Raises UserError for a missing input, FloatingPointError for a loss or gradient that is not
    finite.
    """
    run, tag = Run.of(recipe), phase.tag(round_)
    stage = rounds.train_stage(recipe, run, phase, round_)
    if stage.done():
        dist.log(f"{tag}: done before, in {stage.outputs[0]}")
        return
    rounds.require(recipe, *stage.inputs)
    paths.claim(recipe)
    device, folder = engine.init_ranks(), run.checkpoints(tag)
    data = load_data(recipe, run, phase, round_)
    trainer = engine.build_engine(recipe, stage.start, folder, device)
    rehearse(trainer, data)
    saved = checkpoint.newest(folder, data.plan.hash)
    state = (
        checkpoint.load(trainer, saved)
        if saved
        else TrainState(0, 0, 0, data.plan.hash, dist.world_size())
    )
    if saved:
        dist.log(f"{tag}: goes on from {saved}, made on {state.world_size} ranks")
    record = StepLog(run.train_log(tag), state.step, data.meta(recipe, round_))
    curves = trackers.Trackers(recipe, run, tag, record.steps)
    stop, clock = StopRequest(), SaveClock(recipe.train, device)

    with dist.Progress(data.plan.num_steps, "steps", f"train {tag}", done=state.step) as progress:
        for step, micro_batches in data.batches(state.step):
            lr = engine.lr_at(step.index, data.plan.num_steps, data.peak_lr, recipe.train)
            entry, asked = train_step(trainer, data, step, micro_batches, lr, stop.asked)
            state = TrainState(
                step.index + 1,
                step.epoch,
                state.tokens + entry["tokens"],
                state.plan_hash,
                dist.world_size(),
            )
            record.add(entry)
            curves.log(entry)
            progress.update(1, summary(entry))
            is_last = state.step == data.plan.num_steps
            if asked or is_last or clock.is_due(state.step):
                record.flush()
                checkpoint.save(trainer, folder, state, recipe.train.keep_checkpoints)
                clock.saved()
            if asked and not is_last:
                dist.log(
                    f"{tag}: asked to stop, saved at step {state.step}; the same command goes on "
                    "from there"
                )
                raise SystemExit(dist.REQUEUE)

    probe = data.documents.plain(PROBE_TOKENS).to(trainer.device)
    live = export.surprisals(trainer.module, probe, min(PROBED, probe.input_ids.shape[1] - 1))
    meta = {
        "tag": tag,
        "round": round_,
        "phase": phase.name,
        "start": paths.fingerprint(stage.start),
        **asdict(state),
        "probe": {"tokens": probe.input_ids[0].tolist(), "surprisals": live},
    }
    export.export(
        trainer.module.lm,
        stage.start,
        stage.outputs[0],
        run.adapter(tag) if recipe.lora else None,
        meta,
    )
    record.flush()
    curves.close()
    torch.distributed.barrier()
    if dist.rank() == 0:
        checkpoint.clear(folder)
        dist.log(f"{tag}: {stage.outputs[0]}")


def rehearse(trainer, data: "PhaseData") -> None:
    """A whole step of the dearest bin with a loss and a learning rate of zero, before step 1.

    What does not fit fails now and not in an hour; weights and moments stay bit for bit what they
    were. It also makes the optimizer's state, into which a checkpoint is loaded. Raises UserError
    where memory does not suffice, FloatingPointError where the loss is not finite.
    """
    rows = data.plan.dearest_bin()
    batch = data.documents.batch(rows)
    trainer.set_gradient_accumulation_boundary(True)
    try:
        total = float(forward_backward(trainer, batch, data.phase, 0.0)[0])
        if not math.isfinite(total):  # the same bin on all ranks
            raise FloatingPointError(
                f"before step 1: loss is {total} at the plan's dearest bin; rows: "
                f"{', '.join(batch.ids)}"
            )
        engine.set_lr(trainer, 0.0)
        trainer.step()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory at the dearest bin of the plan ({batch.labels.numel():,} tokens) "
            "before step 1: lower "
            "train.capacity_tokens, take more ranks or ds_configs/zero3_offload.json; "
            "launch/plan.py says what fits "
            f"({str(error).splitlines()[0]})"
        ) from error
    engine.set_optimizer_step(trainer, 0)


def forward_backward(trainer, batch: batches.Batch, phase: Phase, scale: float) -> torch.Tensor:
    """Adds the gradient of the bin's summed loss times `scale`. Returns the sums (total, z, y),
    float64 [3].
    """
    batch = batch.to(trainer.device)
    layout = attention.prepare(batch, trainer.module.backend, phase.bottleneck)
    total, z, y = trainer(
        batch.input_ids, batch.position_ids, batch.labels, batch.segment_id, layout
    )
    trainer.backward(total * scale)
    return torch.stack([total.detach(), z, y]).double()


def train_step(
    trainer, data: "PhaseData", step, micro_batches, lr: float, stop_asked: bool
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
            keyed_seed(data.seed, data.tag, step.index, *batch.ids)
        )  # of LoRA's dropout
        losses = forward_backward(
            trainer, batch, data.phase, dist.world_size() / step.supervised_tokens
        )
        sums[:-1] += torch.cat([losses, batch.counts().to(trainer.device)])
    finite_here = bool(sums[0].isfinite())
    sums[-1] = stop_asked
    digest = torch.tensor(
        packing.rows_digest(np.concatenate([b.rows for b in micro_batches])), device=trainer.device
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
    engine.set_lr(trainer, lr)
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
        "peak_bytes": engine.peak_bytes(trainer.device),
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
    everyone = [None] * dist.world_size()
    torch.distributed.all_gather_object(everyone, [i for batch in micro_batches for i in batch.ids])
    named = ", ".join([i for ids in everyone for i in ids][:64])
    raise FloatingPointError(
        f"step {step.index}: {what} is {value}; checkpoints up to the step before are intact; "
        f"rows: {named}"
    )


@dataclass(frozen=True)
class PhaseData:
    """The plan of a phase, and the rows and traces it speaks of."""

    phase: Phase
    tag: str
    seed: int
    plan: packing.Plan
    documents: batches.Documents
    peak_lr: float
    shape: ModelShape
    frozen: bool  # LoRA
    peak_flops: float | None  # of one rank's device, per second; None for a CPU

    def batches(self, first_step: int):
        """(StepPlan, this rank's micro-batches) of every step from `first_step` on, prefetched."""
        return batches.prefetched(
            self.plan, self.documents, dist.rank(), dist.world_size(), first_step
        )

    def mfu(self, step, wall_s: float) -> float | None:
        """Share of the devices' peak that went into FLOPs of real tokens and allowed pairs;
        recomputation not counted.
        """
        if self.peak_flops is None:
            return None
        tokens, pairs = self.plan.sizes.work(step.rows, self.shape.pair_cost)
        flops = self.shape.training_flops(tokens, pairs, step.supervised_tokens, self.frozen)
        return flops / (wall_s * self.peak_flops * dist.world_size())

    def meta(self, recipe: Recipe, round_: int) -> dict:
        """The head of the train log."""
        return {
            "tag": self.tag,
            "round": round_,
            "phase": self.phase.name,
            "world_size": dist.world_size(),
            "plan_hash": self.plan.hash,
            "num_steps": self.plan.num_steps,
            "rows": len(np.unique(self.plan.rows)),
            "epochs": int(self.plan.epochs.max()) + 1,
            "seed": recipe.seed,
            "peak_lr": self.peak_lr,
        }


def load_data(recipe: Recipe, run: Run, phase: Phase, round_: int) -> PhaseData:
    """Store, traces and plan of a phase. Raises UserError where they do not fit together."""
    store = ShardStore(run.shards)
    tokenizer = model.load_tokenizer(run.base)
    store.check_tokenizer(tokenizer)
    traces = (
        TraceSet.load(run.traces(phase.tag(round_)), store, round_, phase.name)
        if phase.trace_source == "model"
        else None
    )
    vocab = AbstractVocab.of(tokenizer, recipe.codebook_size)
    documents = batches.Documents(store, traces, phase, vocab, recipe.train, recipe.traces)
    gpu = estimate.gpu_named(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return PhaseData(
        phase,
        phase.tag(round_),
        recipe.seed,
        batches.plan_of(recipe, run, phase, round_, documents),
        documents,
        recipe.train.phase_lr.get(phase.name, recipe.train.lr),
        ModelShape.of_directory(run.base),
        recipe.lora is not None,
        gpu and gpu.flops,
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
