"""The preflight and the audit: sizes against real models and hand-made sums, and every kind of
fault.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from shape_drill import shape_of
from synthetic_run import step_entry, train_log_meta

from abscot.common import hardware
from abscot.common.errors import UserError
from abscot.common.files import publish, write_json_atomic
from abscot.common.hardware import GPUS
from abscot.method.lineage import Training
from abscot.method.phases import PHASES
from abscot.model.shape import GB, QWEN3, ModelShape
from abscot.packing.make_plan import make_plan
from abscot.packing.plan import Plan, rows_digest
from abscot.pipeline import estimate
from abscot.pipeline.estimate import Sharding, memory_bytes
from abscot.pipeline.preflight import preflight
from abscot.recipe.load import ROOT, dump, load_recipe
from abscot.recipe.run import Run
from abscot.recipe.schema import LoraConfig
from abscot.training.audit import audit, render
from abscot.training.record import TrainLog

SMALL = dict(
    hidden_size=64,
    intermediate_size=160,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=128,
)


def real_model(layers: int, **changes):
    config = transformers.Qwen3Config(num_hidden_layers=layers, **{**SMALL, **changes})
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, attn_implementation="sdpa"
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_shape_read_from_a_saved_model_counts_its_parameters(tmp_path, tied):
    model = real_model(2, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert ModelShape.of_directory(tmp_path).parameters == sum(
        p.numel() for p in model.parameters()
    )


def test_qwen3_shapes_have_the_published_sizes():
    sizes = {"0.6B": 0.6, "1.7B": 1.7, "4B": 4.0, "8B": 8.2, "14B": 14.8, "32B": 32.8}
    assert {name: round(shape.parameters / 1e9, 1) for name, shape in QWEN3.items()} == sizes


def test_activations_a_layer_saves_are_those_of_a_real_layer():
    def saved_bytes(layers: int, tokens: int = 512) -> int:
        model = real_model(layers, hidden_size=256, intermediate_size=768, head_dim=64).model
        model.train()
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.randint(0, 100, (1, tokens)), use_cache=False)
        return sum(size for size, _ in storages.values())

    real = (saved_bytes(3) - saved_bytes(1)) / 2 / 512
    shape = ModelShape(256, 768, 1, 4, 2, 64, 128, True)
    assert estimate.activation_bytes_per_token(shape, checkpointing=False) == pytest.approx(
        real, rel=0.1
    )


def test_memory_of_zero_stages_by_hand():
    shape = QWEN3["4B"]
    parameters = shape.parameters

    def states(sharding: Sharding, trainable=None) -> float:
        parts = memory_bytes(
            shape, sharding, 8, 8192, checkpointing=True, chunk_tokens=1024, trainable=trainable
        )
        assert parts["total"] == pytest.approx(
            sum(v for k, v in parts.items() if k not in ("total", "host"))
        )
        return parts["parameters"] + parts["gradients"] + parts["optimizer"]

    assert states(Sharding(0)) == 18 * parameters
    assert states(Sharding(1)) == pytest.approx((2 + 4 + 12 / 8) * parameters)
    assert states(Sharding(2)) == pytest.approx((2 + 16 / 8) * parameters)
    assert states(Sharding(3)) == pytest.approx(18 / 8 * parameters)
    assert states(Sharding(3, offload_optimizer=True)) == pytest.approx(4 / 8 * parameters)
    assert states(Sharding(2), trainable=10**6) == pytest.approx(2 * parameters + 16 / 8 * 10**6)


# peak_bytes of rank 0 by tests/shape_drill.py: shape, DeepSpeed file, ranks, tokens of the largest
# bin, LoRA, measured
CPU_PEAKS = [
    ("512x6", "cpu.json", 2, 1300, False, 3.06 * GB),
    ("0.6B", "zero3_offload.json", 2, 760, False, 12.28 * GB),
    ("4B", "zero3.json", 1, 1076, True, 17.94 * GB),
]


@pytest.mark.parametrize(
    ("name", "config", "world", "bin_tokens", "lora", "measured_bytes"), CPU_PEAKS
)
def test_the_estimate_of_a_cpu_rank_is_near_what_was_measured(
    name, config, world, bin_tokens, lora, measured_bytes
):
    shape = shape_of(name)
    sharding = Sharding.of_config(json.loads((ROOT / "ds_configs" / config).read_text()))
    trainable = shape.lora_parameters(LoraConfig(), 66) if lora else None
    parts = estimate.cpu_memory_bytes(
        shape,
        sharding,
        world,
        bin_tokens,
        checkpointing=True,
        chunk_tokens=256,
        trainable=trainable,
    )
    assert parts["total"] == pytest.approx(measured_bytes, rel=0.2)


def test_flops_are_six_a_weight_and_token_and_twelve_a_dimension_and_pair():
    shape = ModelShape(
        hidden=8, intermediate=16, layers=3, heads=2, kv_heads=1, head_dim=4, vocab=32, tied=True
    )
    weights = 3 * (8 * 4 * (2 + 2 * 1 + 2) + 3 * 8 * 16)
    by_hand = 6 * weights * 100 + 12 * 3 * 2 * 4 * 500 + 6 * 8 * 32 * 20
    assert shape.training_flops(tokens=100, pairs=500, supervised=20) == pytest.approx(by_hand)


def test_lora_counts_what_peft_trains(tmp_path):
    import peft

    model = real_model(2)
    model.save_pretrained(tmp_path)
    lora = LoraConfig(r=4)
    config = peft.LoraConfig(
        r=4,
        target_modules=lora.target_modules,
        trainable_token_indices={"embed_tokens": list(range(66))},
    )
    trained = sum(
        p.numel() for p in peft.get_peft_model(model, config).parameters() if p.requires_grad
    )
    shape = ModelShape.of_directory(tmp_path)
    assert shape.lora_parameters(lora, 66) == trained + (0 if shape.tied else 66 * shape.hidden)
    assert QWEN3["4B"].lora_parameters(LoraConfig(), 66) < 0.02 * QWEN3["4B"].parameters


def test_the_smallest_world_is_where_it_starts_to_fit():
    def memory_of(world: int) -> dict:
        return memory_bytes(
            QWEN3["32B"], Sharding(3), world, 32_768, checkpointing=True, chunk_tokens=1024
        )

    world = estimate.smallest_world_size(75 * GB, memory_of)
    assert memory_of(world)["total"] <= 75 * GB < memory_of(world // 2)["total"]
    assert estimate.smallest_world_size(10 * GB, memory_of) is None


def test_longer_prompts_and_slower_gpus_take_longer_to_trace():
    def seconds(gpu: int, tokens: int) -> float:
        return estimate.trace_seconds(QWEN3["4B"], GPUS[gpu], np.full(100, tokens), 128, mfu=0.4)

    assert seconds(0, 20_000) > seconds(1, 20_000) > seconds(2, 20_000) > seconds(2, 200) > 0


FULL = str(ROOT / "launch" / "recipes" / "qwen3-4b-full-600k.yaml")


def test_preflight_before_there_is_data_assumes_and_says_so(tmp_path):
    recipe = load_recipe(FULL, [f"run_root={tmp_path}", "data.rows=6000"])
    report = preflight(recipe, world_size=8, mfu=0.4)
    assert "assumed" in report["data"]["origin"]
    assert (
        report["data"]["read"]
        == 6000
        == report["data"]["kept"] + report["data"]["rejected"]["too_long"]
    )
    phase_a, phase_b = report["phases"]
    assert phase_a["rows"] in (report["data"]["kept"] // 6, report["data"]["kept"] // 6 + 1)
    assert (
        phase_a["steps"]
        == -(-phase_a["rows"] // recipe.train.global_batch_examples) * recipe.train.epochs
    )
    assert phase_a["tokens"] > 10 * phase_b["tokens"] and 0 < phase_a["utilisation"] <= 1
    assert (
        report["memory"][0]["setting"] == "the recipe: ZeRO-3"
        and report["memory"][0]["fits"]["H100 80 GB"]
    )


def test_preflight_reads_a_file_of_lengths(tmp_path):
    file = tmp_path / "lengths.csv"
    file.write_text("10,100,20\n" * 30 + "10,40000,20\n")
    recipe = load_recipe(
        FULL, [f"run_root={tmp_path}", "staging=reuse", "train.global_batch_examples=8"]
    )
    report = preflight(recipe, 1, 0.4, file)
    assert report["data"]["rejected"] == {"too_long": 1} and report["data"]["lost_tokens"] == {
        "too_long": 40_030
    }
    assert report["phases"][0]["tokens"] == 30 * (10 + 100 + 20 + 130)
    assert report["data"]["lengths"]["cot"]["p50"] == 100
    file.write_text("10 100\n")
    with pytest.raises(UserError, match=r"lengths.csv: expected a line per row"):
        preflight(recipe, 1, 0.4, file)


def test_what_does_not_fit_gets_a_remedy_that_does(tmp_path):
    overrides = [
        f"run_root={tmp_path}",
        "data.rows=2000",
        "train.deepspeed=ds_configs/zero1.json",
        "model.base=Qwen/Qwen3-14B",
    ]
    report = preflight(load_recipe(FULL, overrides), world_size=8, mfu=0.4)
    assert not report["memory"][0]["fits"]["H100 80 GB"]
    (advice,) = [line for line in report["advice"] if line.startswith("H100 80 GB")]
    assert "zero3" in advice
    remedy = overrides[:2] + [advice.split("--set ")[1].split(" ")[0], overrides[3]]
    assert preflight(load_recipe(FULL, remedy), world_size=8, mfu=0.4)["memory"][0]["fits"][
        "H100 80 GB"
    ]


def test_an_unknown_base_is_the_users_mistake(tmp_path):
    recipe = load_recipe(FULL, [f"run_root={tmp_path}", "model.base=someone/model"])
    with pytest.raises(UserError, match="model.base: someone/model"):
        preflight(recipe, 8, 0.4)


@pytest.fixture
def trained(tmp_path):
    """(recipe, run) with plans and logs of a finished two-round run of 40 rows."""
    recipe = load_recipe(
        None,
        [
            f"run_root={tmp_path}",
            "rounds=2",
            "train.epochs=2",
            "staging=partition",
            "train.capacity_tokens=64",
        ],
    )
    run = Run.of(recipe)
    with publish(run.shards) as directory:
        write_json_atomic(directory / "manifest.json", {"rows": 40})
    run.config.write_text(dump(recipe))
    lengths = np.random.default_rng(0).integers(1, 64, 40)
    for round_ in (1, 2):
        for phase in (PHASES["A"], PHASES["B"]):
            tag = phase.tag(round_)
            plan = make_plan(
                lengths,
                lengths,
                lengths,
                seed=0,
                epochs=2,
                capacity_tokens=64,
                global_batch_examples=4,
                round_=round_,
                phase=phase.name,
                rows=Training(recipe, run, phase, round_).rows(40),
            )
            plan.save(run.plan_of(tag), "key")
            planned = [plan.step(k) for k in range(plan.num_steps)]
            steps = [
                step_entry(k, examples=step.examples, rows_digest=rows_digest(step.rows))
                for k, step in enumerate(planned)
            ]
            meta = train_log_meta(tag=tag, plan_hash=plan.hash)
            TrainLog(meta=meta, steps=steps).write(run.train_log(tag))
    return recipe, run


def edit(run: Run, tag: str, change) -> None:
    log = json.loads(run.train_log(tag).read_text())
    change(log)
    write_json_atomic(run.train_log(tag), log)


def test_an_exact_run_is_proven(trained):
    findings = audit(*trained)
    assert [f.tag for f in findings] == ["pi1_phaseA", "pi1_phaseB", "pi2_phaseA", "pi2_phaseB"]
    assert not any(f.faults for f in findings)
    assert sum(f.trained for f in findings) == 2 * 40
    assert render(findings).count("every row exactly once per epoch") == 4


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda log: log["steps"].pop(3), "1 of 6 steps missing"),
        (lambda log: log["steps"].insert(2, log["steps"][1]), "1 logged twice"),
        (lambda log: log["steps"].pop(), "1 of 6 steps missing"),
        (lambda log: log["steps"].reverse(), "0 of 6 steps missing"),
        (
            lambda log: log["steps"][2].update(rows_digest=1),
            "step 2: the ranks fed 2 rows that are not the plan's 2",
        ),
        (lambda log: log["steps"][2].update(examples=3), "step 2: the ranks fed 3 rows"),
        (lambda log: log["meta"].update(plan_hash="other"), "trained by plan other"),
    ],
)
def test_each_kind_of_mismatch_is_found(trained, change, fault):
    recipe, run = trained
    edit(run, "pi1_phaseB", change)
    faulty = [f for f in audit(recipe, run) if f.faults]
    assert [f.tag for f in faulty] == ["pi1_phaseB"] and fault in render(faulty)


def test_a_plan_that_leaves_out_a_row_is_found(trained):
    recipe, run = trained
    path = run.plan_of("pi2_phaseA")
    plan, key = Plan.load(path)
    plan.rows[0] = plan.rows[1]
    plan.save(path, key)
    edit(run, "pi2_phaseA", lambda log: log["meta"].update(plan_hash=plan.hash))
    (finding,) = [f for f in audit(recipe, run) if f.faults]
    assert "epoch 0 of the plan: 1 rows missing, 0 foreign, 1 more than once" in finding.faults


def test_a_phase_without_a_log_is_not_proven(trained):
    recipe, run = trained
    run.train_log("pi2_phaseB").unlink()
    (finding,) = [f for f in audit(recipe, run) if f.faults]
    assert finding.tag == "pi2_phaseB" and finding.faults[0].startswith("not trained")


def test_the_commands_end_with_the_right_codes(trained, tmp_path):
    _, run = trained

    def launch(script: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "launch" / script), *arguments],
            capture_output=True,
            text=True,
        )

    wrong = launch("audit.py", str(tmp_path / "nothing"))
    assert (
        wrong.returncode == 2
        and "expected the directory of a run" in wrong.stderr
        and wrong.stderr.count("\n") == 1
    )
    plan = launch("plan.py", "--world", "2", "--json", "--set", f"run_root={tmp_path}/new")
    assert plan.returncode == 0 and [
        phase["phase"] for phase in json.loads(plan.stdout)["phases"]
    ] == [
        "A",
        "B",
    ]
    assert launch("plan.py", "--world", "0").returncode == 2


def test_useful_flops_and_the_peak_they_are_held_against():
    shape = QWEN3["4B"]
    full, frozen = (shape.training_flops(1000, 0, 100, frozen) for frozen in (False, True))
    assert (
        frozen == pytest.approx(full * 2 / 3)
        and shape.training_flops(1000, 5e5, 100, True) > frozen
    )
    names = (
        "NVIDIA H200",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA GeForce RTX 4090",
    )
    assert [gpu and gpu.name for gpu in map(hardware.gpu_named, names)] == [
        "H200 141 GB",
        "H100 80 GB",
        "A100 40 GB",
        None,
    ]
