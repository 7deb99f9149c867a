"""One phase of one round: from its inputs to its exported model. The loop is `train` -> `train_step`."""

import math
import signal
import time
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed

from abscot import attention, batches, checkpoint, dist, engine, export, model, packing, paths, rounds
from abscot.checkpoint import TrainState
from abscot.config import Recipe, TrainConfig
from abscot.paths import Run
from abscot.phases import PHASES, Phase
from abscot.shards import ShardStore
from abscot.steplog import StepLog
from abscot.traces import TraceSet
from abscot.vocab import AbstractVocab


def train(recipe: Recipe, phase: Phase, round_: int) -> None:
    """Trains `phase` of `round_` and publishes its model; goes on from the newest checkpoint if there is one.

    Raises UserError for a missing input, FloatingPointError for a loss or gradient that is not finite.
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
    saved = checkpoint.newest(folder, data.plan.hash, dist.world_size())
    state = checkpoint.load(trainer, saved) if saved else TrainState(0, 0, 0, data.plan.hash, dist.world_size())
    log = StepLog(run.train_log(tag), state.step, data.meta(recipe, phase, round_))
    stop, clock = StopRequest(), SaveClock(recipe.train, device)

    with dist.Progress(data.plan.num_steps, "steps", f"train {tag}", done=state.step) as progress:
        for step, micro_batches in data.batches(state.step):
            lr = engine.lr_at(step.index, data.plan.num_steps, data.peak_lr, recipe.train)
            entry, asked = train_step(trainer, step, micro_batches, phase, lr, stop.asked)
            state = TrainState(step.index + 1, step.epoch, state.tokens + entry["tokens"], state.plan_hash, state.world_size)
            log.add(entry)
            progress.update(1, f"loss {entry['loss']:.4f}  lr {lr:.2e}  {entry['tokens_per_s']:,.0f} tokens/s")
            is_last = state.step == data.plan.num_steps
            if asked or is_last or clock.is_due(state.step):
                log.flush()
                checkpoint.save(trainer, folder, state, recipe.train.keep_checkpoints)
                clock.saved()
            if asked and not is_last:
                dist.log(f"{tag}: asked to stop, saved at step {state.step}; the same command goes on from there")
                raise SystemExit(dist.REQUEUE)

    meta = {"tag": tag, "round": round_, "phase": phase.name, "start": paths.fingerprint(stage.start), **asdict(state)}
    export.export(trainer.module.lm, stage.start, stage.outputs[0], run.adapter(tag) if recipe.lora else None, meta)
    log.flush()
    torch.distributed.barrier()
    if dist.rank() == 0:
        checkpoint.clear(folder)
        dist.log(f"{tag}: {stage.outputs[0]}")


def train_step(trainer, step, micro_batches, phase: Phase, lr: float, stop_asked: bool) -> tuple[dict, bool]:
    """One optimizer step over this rank's micro-batches. Returns its log entry and whether any rank was asked to stop.

    The loss is the summed cross-entropy over the step's global number of supervised tokens, which the plan knows
    beforehand: the same for every world size and accumulation. DeepSpeed averages gradients over ranks, hence
    the factor `world_size`; it divides by nothing else, as accumulation is ours (gas = 1, boundary set by hand).
    """
    began_s = time.monotonic()
    sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=trainer.device)
    for number, batch in enumerate(micro_batches, 1):
        trainer.set_gradient_accumulation_boundary(number == len(micro_batches))
        batch = batch.to(trainer.device)
        layout = attention.prepare(batch, trainer.module.backend, phase.bottleneck)
        total, z, y = trainer(batch.input_ids, batch.position_ids, batch.labels, batch.segment_id, layout)
        trainer.backward(total * (dist.world_size() / step.supervised_tokens))
        sums[:-1] += torch.cat([torch.stack([total.detach(), z, y]).double(), batch.counts()])
    finite_here = bool(sums[0].isfinite())
    sums[-1] = stop_asked
    digest = torch.tensor(packing.rows_digest(np.concatenate([b.rows for b in micro_batches])), device=trainer.device)
    torch.distributed.all_reduce(sums)
    torch.distributed.all_reduce(digest)
    all_ = Sums(*sums.tolist())
    if not math.isfinite(all_.total):
        refuse("loss", all_.total, step, [] if finite_here else micro_batches)
    assert all_.n_supervised == step.supervised_tokens, f"step {step.index}: {all_.n_supervised} supervised tokens, plan says {step.supervised_tokens}"
    engine.set_lr(trainer, lr)
    trainer.step()
    grad_norm = float(trainer.get_global_grad_norm())
    if not math.isfinite(grad_norm):  # DeepSpeed has then left the weights as they were
        refuse("gradient norm", grad_norm, step, micro_batches)
    wall_s = time.monotonic() - began_s
    entry = {
        "step": step.index, "epoch": step.epoch, "loss": all_.total / step.supervised_tokens,
        "loss_z": all_.z / max(all_.n_z, 1), "loss_y": all_.y / max(all_.n_y, 1), "lr": lr, "grad_norm": grad_norm,
        "supervised_tokens": step.supervised_tokens, "tokens": int(all_.tokens), "tokens_per_s": all_.tokens / wall_s,
        "wall_s": wall_s, "examples": step.examples, "rows_digest": int(digest),
    }
    return entry, all_.stop_asked > 0


class Sums(NamedTuple):
    """What the ranks add up in a step: summed losses, token counts, and how many were asked to stop."""

    total: float
    z: float
    y: float
    tokens: float
    n_supervised: float
    n_z: float
    n_y: float
    stop_asked: float


def refuse(what: str, value: float, step, micro_batches) -> None:
    """Ends all ranks at the same step, before its weights are saved, and names the rows it was computed from."""
    everyone = [None] * dist.world_size()
    torch.distributed.all_gather_object(everyone, [i for batch in micro_batches for i in batch.ids])
    named = ", ".join([i for ids in everyone for i in ids][:64])
    raise FloatingPointError(f"step {step.index}: {what} is {value}; checkpoints up to the step before are intact; rows: {named}")


@dataclass(frozen=True)
class PhaseData:
    """The plan of a phase, and the rows and traces it speaks of."""

    plan: packing.Plan
    documents: batches.Documents
    peak_lr: float

    def batches(self, first_step: int):
        """(StepPlan, this rank's micro-batches) of every step from `first_step` on, prefetched."""
        return batches.prefetched(self.plan, self.documents, dist.rank(), dist.world_size(), first_step)

    def meta(self, recipe: Recipe, phase: Phase, round_: int) -> dict:
        """The head of the train log."""
        return {
            "tag": phase.tag(round_), "round": round_, "phase": phase.name, "world_size": dist.world_size(),
            "plan_hash": self.plan.hash, "num_steps": self.plan.num_steps, "rows": len(np.unique(self.plan.rows)),
            "epochs": int(self.plan.epochs.max()) + 1, "seed": recipe.seed, "peak_lr": self.peak_lr,
        }


def load_data(recipe: Recipe, run: Run, phase: Phase, round_: int) -> PhaseData:
    """Store, traces and plan of a phase. Raises UserError where they do not fit together."""
    store = ShardStore(run.shards)
    tokenizer = model.load_tokenizer(run.base)
    store.check_tokenizer(tokenizer)
    traces = TraceSet.load(run.traces(phase.tag(round_)), store, round_, phase.name) if phase.trace_source == "model" else None
    vocab = AbstractVocab.of(tokenizer, recipe.codebook_size)
    documents = batches.Documents(store, traces, phase, vocab, recipe.train, recipe.traces)
    return PhaseData(
        batches.plan_of(recipe, run, phase, round_, documents), documents,
        recipe.train.phase_lr.get(phase.name, recipe.train.lr),
    )


class SaveClock:
    """When a checkpoint is due: by steps, or by minutes on rank 0's clock, on which the ranks agree."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.device = device
        self.steps, self.minutes = config.checkpoint_every_steps, config.checkpoint_every_minutes
        self.saved()

    def is_due(self, step: int) -> bool:
        if self.steps and step % self.steps == 0:
            return True
        if not self.minutes:
            return False
        due = torch.tensor(int(time.monotonic() - self.saved_s >= 60 * self.minutes), device=self.device)
        torch.distributed.broadcast(due, 0)
        return bool(due)

    def saved(self) -> None:
        self.saved_s = time.monotonic()


class StopRequest:
    """SIGTERM or SIGUSR1 asks for a checkpoint and an end; the ranks agree on the step in `train_step`."""

    def __init__(self):
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, *_):
        self.asked = True
