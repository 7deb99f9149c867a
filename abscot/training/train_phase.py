"""One training: from its inputs to its exported model."""

import contextlib
import time
from pathlib import Path

import torch

from abscot.common import files, ranks
from abscot.common.log import Progress, log
from abscot.evaluation.modes import trace_rules
from abscot.method.lineage import Training
from abscot.method.vocab import load_tokenizer
from abscot.model import checkpoint_dirs
from abscot.model.chat_model import ChatModel, DecodingRules
from abscot.model.handover import ExportMeta, Probe, agree, surprisals
from abscot.model.kernels import make_deterministic
from abscot.recipe.run import claim
from abscot.training.channel import Channel
from abscot.training.export import export
from abscot.training.model_engine import init_ranks
from abscot.training.optimizer import lr_at
from abscot.training.phase_data import PhaseData, load_data
from abscot.training.record import TrainLog
from abscot.training.together import held_by_first_rank, on_all_ranks, on_first_rank
from abscot.training.trainer import Trainer, Work


def train(training: Training, lease: contextlib.AbstractContextManager | None = None) -> None:
    """Trains and publishes the model; goes on from the newest checkpoint if there is one. lease:
    what rank 0 holds while it writes; where that is refused, all ranks raise it.

    Raises MissingInput, and FloatingPointError for a loss or gradient that is not finite.
    """
    lease = lease or contextlib.nullcontext()
    if _is_done(training):
        if ranks.rank() == 0:
            with lease:
                _clear(training)
        return
    files.require(*training.inputs)
    if training.recipe.train.deterministic:
        make_deterministic()
    device = init_ranks()
    with held_by_first_rank(lease):
        if not on_first_rank(lambda: _is_done(training)):  # by another command, until now
            verify_inputs(training)
            claim(training.recipe)
            _train(training, device)


def _is_done(training: Training) -> bool:
    return all(map(files.finished, training.outputs))


def _clear(training: Training) -> None:
    log(f"{training.tag}: done before, in {training.export}")
    checkpoint_dirs.clear(training.checkpoints, keep=1)  # a kill came between publishing and this


def _train(training: Training, device: torch.device) -> None:
    recipe, tag = training.recipe, training.tag
    data = load_data(training)
    channel = Channel.of(data)
    trainer = Trainer(work_of(training, data), device, data.most_expensive_batch())
    num_steps, done = data.plan.num_steps, trainer.state.step
    check_start(training, data, trainer)
    export_on_the_way(training, data, trainer)  # a training that goes on may lack the last one
    with (
        Progress(num_steps, "steps", f"train {tag}", done) as progress,
        contextlib.closing(data.batches(done)) as batches,
    ):
        while not trainer.has_ended:
            step, micro_batches = next(batches)
            lr = lr_at(step.index, num_steps, training.peak_lr, recipe.train)
            trainer.step(step, micro_batches, lr, data.seconds_at_peak(step))
            if channel and channel.is_due(trainer.state.step, num_steps):
                trainer.measured(channel.measure(trainer.model_engine, step.index))
            progress.update(1, trainer.log.content.summary())
            trainer.keep()
            export_on_the_way(training, data, trainer)
    log_end(training.title, trainer.log.content)
    meta = export_meta(training, data, trainer)
    lm = trainer.model_engine.module.lm
    adapter, codebook, chat = training.adapter, codebook_of(training), chat_model_of(training)
    export(lm, training.start, training.export, adapter, meta, codebook, chat)
    trainer.close()
    log(f"{tag}: {training.export}")


def verify_inputs(training: Training) -> None:
    """Compares shards, traces and the model that training starts from with their checksums; the
    ranks read them between them. Raises UserError on all ranks.
    """
    began_s = time.monotonic()
    part, parts = ranks.rank(), ranks.world_size()
    on_first_rank(lambda: files.refuse_unlisted(*training.inputs))
    sizes = on_all_ranks(lambda: files.verify(*training.inputs, part=part, parts=parts))
    took_s = time.monotonic() - began_s
    log(f"{training.tag}: {sum(sizes) / 1e9:.2f} GB of inputs verified in {took_s:.1f} s")


def check_start(training: Training, data: PhaseData, trainer: Trainer) -> None:
    """Compares the model that training starts from with the weights that were trained, as any other
    engine that loads it does. All ranks must call it. Raises UserError on all.
    """
    probe = Probe.left_in(training.start)
    if probe is None or trainer.state.step:  # then it was compared before the first step
        return
    batch = data.documents.text(probe.tokens).to(trainer.model_engine.device)
    found = surprisals(trainer.model_engine.module, batch, len(probe.surprisals))
    most_kl = training.recipe.inference.handover_kl
    on_first_rank(lambda: agree(training.start, probe, found, most_kl))


def export_on_the_way(training: Training, data: PhaseData, trainer: Trainer) -> None:
    """Publishes the whole model where train.export_every_steps says so and it is not there yet.
    All ranks must call it: behind the checkpoint of the step, so that a request to stop need not
    wait for it; what then is missing is made when the training goes on.
    """
    every, step = training.recipe.train.export_every_steps, trainer.state.step
    if not every or step % every or step == 0 or trainer.has_ended:
        return
    target = training.intermediate(step)
    if on_first_rank(lambda: _is_of(training, target, trainer.state.plan_hash)):
        return
    began_s = time.monotonic()
    meta = export_meta(training, data, trainer)
    lm, chat = trainer.model_engine.module.lm, chat_model_of(training)
    export(lm, training.start, target, None, meta, chat=chat)
    torch.distributed.barrier()
    log(f"{training.tag}: {target} in {time.monotonic() - began_s:.1f} s")


def log_end(title: str, content: TrainLog) -> None:
    """Says where the channel stands, and whether that ended the training."""
    if closed := content.closed_channel(title):
        log(closed)
    elif content.end < content.meta.num_steps:
        log(f"{title}: {content.channel[-1].summary()}, ends after {content.steps_text} steps")


def _is_of(training: Training, target: Path, plan_hash: str) -> bool:
    """Was it made by this training, and not by one from other data or another start?"""
    if not files.is_done(target):
        return False
    meta = files.read_done(target)
    made_from = (files.fingerprint(training.start), plan_hash)
    return (meta.get("start"), meta.get("plan_hash")) == made_from


def codebook_of(training: Training) -> Path | None:
    """The codebook that goes along with a round's model, so that others can code their own CoTs;
    None where the run has none.
    """
    made = training.ends_round and files.is_done(training.run.codebook)
    return training.run.codebook if made else None


def chat_model_of(training: Training) -> ChatModel | None:
    """What goes along with a model that writes traces, so that others ask it as evaluation does;
    None for a baseline.
    """
    if not training.reads_traces:
        return None
    recipe = training.recipe
    tokenizer = load_tokenizer(training.start, recipe.model.trust_remote_code)
    rules = trace_rules(recipe, "abstract")
    return ChatModel(tokenizer, DecodingRules.of_tokenizer(tokenizer, recipe.codebook_size, rules))


def work_of(training: Training, data: PhaseData) -> Work:
    return Work(
        recipe=training.recipe,
        run=training.run,
        name=training.tag,
        hidden=training.phase.hidden,
        start=training.start,
        checkpoints=training.checkpoints,
        train_log=training.train_log,
        meta=data.meta(),
    )


def export_meta(training: Training, data: PhaseData, trainer: Trainer) -> ExportMeta:
    """What DONE says of the model, with the probe by which the next engine knows it. All ranks must
    call it.
    """
    batch = data.documents.plain(Probe.TOKENS).to(trainer.model_engine.device)
    positions = min(Probe.POSITIONS, batch.input_ids.shape[1] - 1)
    live = surprisals(trainer.model_engine.module, batch, positions)
    return ExportMeta(
        tag=training.tag,
        round=training.round,
        phase=training.phase.name,
        start=files.fingerprint(training.start),
        **trainer.state.model_dump(),
        probe=Probe(tokens=batch.input_ids[0].tolist(), surprisals=live),
    )
