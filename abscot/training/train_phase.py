"""One phase of one round: from its inputs to its exported model. The loop is `train` ->
`train_step`.
"""

from dataclasses import asdict

import torch.distributed

from abscot.common import files, ranks
from abscot.common.errors import REQUEUE
from abscot.common.log import Progress, log
from abscot.method.lineage import Training
from abscot.model.handover import PROBE_TOKENS, PROBED, surprisals
from abscot.recipe.run import claim
from abscot.training import checkpoint
from abscot.training.checkpoint import TrainState
from abscot.training.engine import build_engine, init_ranks
from abscot.training.export import export
from abscot.training.optimizer import lr_at
from abscot.training.phase_data import load_data
from abscot.training.record import StepLog, Trackers
from abscot.training.trainer import SaveClock, StopRequest, rehearse, summary, train_step


def train(training: Training) -> None:
    """Trains and publishes the model; goes on from the newest checkpoint if there is one.

    Raises MissingInput, FloatingPointError for a loss or gradient that is not finite.
    """
    recipe, run, tag = training.recipe, training.run, training.tag
    if all(map(files.finished, training.outputs)):
        log(f"{tag}: done before, in {training.export}")
        return
    files.require(*training.inputs)
    claim(recipe)
    device, folder = init_ranks(), training.checkpoints
    data = load_data(training)
    trainer = build_engine(recipe, training.start, folder, device)
    rehearse(trainer, data)
    saved = checkpoint.newest(folder, data.plan.hash)
    state = (
        checkpoint.load(trainer, saved)
        if saved
        else TrainState(0, 0, 0, data.plan.hash, ranks.world_size())
    )
    if saved:
        log(f"{tag}: goes on from {saved}, made on {state.world_size} ranks")
    record = StepLog(training.train_log, state.step, data.meta())
    curves = Trackers(recipe, run, tag, record.steps)
    stop, clock = StopRequest(), SaveClock(recipe.train, device)

    with Progress(data.plan.num_steps, "steps", f"train {tag}", done=state.step) as progress:
        for step, micro_batches in data.batches(state.step):
            lr = lr_at(step.index, data.plan.num_steps, training.peak_lr, recipe.train)
            entry, asked = train_step(trainer, data, step, micro_batches, lr, stop.asked)
            state = TrainState(
                step.index + 1,
                step.epoch,
                state.tokens + entry["tokens"],
                state.plan_hash,
                ranks.world_size(),
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
                log(
                    f"{tag}: asked to stop, saved at step {state.step}; the same command goes on "
                    "from there"
                )
                raise SystemExit(REQUEUE)

    probe = data.documents.plain(PROBE_TOKENS).to(trainer.device)
    live = surprisals(trainer.module, probe, min(PROBED, probe.input_ids.shape[1] - 1))
    meta = {
        "tag": tag,
        "round": training.round,
        "phase": training.phase.name,
        "start": files.fingerprint(training.start),
        **asdict(state),
        "probe": {"tokens": probe.input_ids[0].tolist(), "surprisals": live},
    }
    export(trainer.module.lm, training.start, training.export, training.adapter, meta)
    record.flush()
    curves.close()
    torch.distributed.barrier()
    if ranks.rank() == 0:
        checkpoint.clear(folder)
        log(f"{tag}: {training.export}")
