"""The preflight: lengths, remedies, unknown bases, schedules."""

import pytest

from abscot.common.errors import UserError
from abscot.model import kernels
from abscot.model.shape import QWEN3
from abscot.pipeline.preflight import preflight, stage_walltimes
from abscot.pipeline.preflight_text import render
from abscot.recipe.load import ROOT, load_recipe

FULL = str(ROOT / "launch" / "recipes" / "qwen3-4b-full-600k.yaml")
NO_CHANNEL = "train.channel_rows=0"  # rows that a few rows could not spare


def test_preflight_before_there_is_data_assumes_and_says_so(tmp_path):
    recipe = load_recipe(FULL, [f"run_root={tmp_path}", "data.rows=6000", NO_CHANNEL])
    report = preflight(recipe, world_size=8, mfu=0.4)
    assert "assumed" in report["data"]["origin"]
    data = report["data"]
    assert data["kept"] == 6000 == data["read"] - data["rejected"]["too_long"]
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


@pytest.mark.parametrize("policy", ["drop", "truncate_cot_right"])
def test_a_plan_has_the_rows_that_are_asked_for_whatever_fits(tmp_path, policy):
    recipe = ROOT / "launch" / "recipes" / "qwen3-4b-lora-5k.yaml"
    overrides = [f"run_root={tmp_path}", f"data.long_rows={policy}"]
    report = preflight(load_recipe(recipe, overrides), world_size=2, mfu=0.4)
    assert [(phase["rows"], phase["steps"]) for phase in report["phases"]] == [(5000, 157)] * 2
    assert "data.rows" not in " ".join(report["advice"])
    looked_at, cut = report["data"]["read"], report["data"]["truncated"]
    assert looked_at > 15_000 if policy == "drop" else (looked_at == 5000 and cut > 3000)


def test_preflight_reads_a_file_of_lengths(tmp_path):
    file = tmp_path / "lengths.csv"
    file.write_text("10,100,20\n" * 30 + "10,40000,20\n")
    recipe = load_recipe(
        FULL,
        [f"run_root={tmp_path}", "staging=reuse", "train.global_batch_examples=8", NO_CHANNEL],
    )
    report = preflight(recipe, 1, 0.4, file)
    assert report["data"]["rejected"] == {"too_long": 1} and report["data"]["lost_tokens"] == {
        "too_long": 40_030
    }
    assert report["phases"][0]["tokens"] == 30 * (10 + 100 + 20 + 130)
    assert report["data"]["lengths"]["cot"]["p50"] == 100
    assert any(
        line.startswith("data.rows: 600,000 are asked for, but only 30 rows")
        for line in report["advice"]
    )
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


def test_models_on_their_way_are_counted_on_the_disk(tmp_path):
    file = tmp_path / "lengths.csv"
    file.write_text("10,100,20\n" * 80)
    keys = ["staging=reuse", "train.global_batch_examples=8", "rounds=2", "train.epochs=1"]
    keys += [f"run_root={tmp_path}", NO_CHANNEL]

    def models_bytes(*more: str) -> float:
        report = preflight(load_recipe(FULL, [*keys, *more]), 1, 0.4, file)
        assert [phase["steps"] for phase in report["phases"]] == [10, 10]
        return report["disk"]["models"]

    each = models_bytes() / 5  # the base, and one for each of four trainings
    # After steps 3, 6 and 9; after step 5, as step 10 is the last.
    assert models_bytes("train.export_every_steps=3") == pytest.approx((5 + 4 * 3) * each)
    assert models_bytes("train.export_every_steps=5") == pytest.approx((5 + 4) * each)
    # Two, one that is being written, and the last of the training before.
    disk = preflight(load_recipe(FULL, [*keys, "train.keep_checkpoints=2"]), 1, 0.4, file)["disk"]
    assert disk["checkpoints"] == 4 * 12 * QWEN3["4B"].parameters


@pytest.fixture
def few(tmp_path):
    """Of 80 rows of 110 tokens and answers of 20: (keys of the recipe -> report, recipe)."""
    file = tmp_path / "lengths.csv"
    file.write_text("10,100,20\n" * 80)
    keys = ["staging=reuse", "train.global_batch_examples=8", "train.epochs=1", "rounds=3"]
    keys += ["schedule=paper", "grounding.layer=0.34", f"run_root={tmp_path}", NO_CHANNEL]

    def planned(*more: str) -> dict:
        return preflight(load_recipe(FULL, [*keys, *more]), 2, 0.4, file)

    return planned


@pytest.fixture
def installed(monkeypatch):
    """Says which kernels this environment has."""

    def say(flash_attention_3: bool, liger: bool) -> None:
        found = kernels.Active(flash_attention_3, liger)
        monkeypatch.setattr(kernels, "active", lambda device: found)

    return say


def modelled(tmp_path, world: int, *keys: str) -> dict:
    """Of 8,000 rows of 6,130 tokens, by the model of speed."""
    file = tmp_path / "long.csv"
    file.write_text("100,5900,130\n" * 8000)
    recipe = load_recipe(FULL, [f"run_root={tmp_path}", "data.rows=8000", NO_CHANNEL, *keys])
    return preflight(recipe, world, lengths_file=file)


def test_a_lever_that_is_off_is_named_with_its_hours(tmp_path, installed):
    installed(False, False)
    off = modelled(tmp_path, 8, "model.keep_attention=false")
    installed(True, True)
    on = modelled(tmp_path, 8)
    assert [lever["on"] for lever in off["levers"]] == [False] * 3
    assert [lever["on"] for lever in on["levers"]] == [True] * 3
    assert not [line for line in on["advice"] if "is off" in line]
    found = [line for line in off["advice"] if "is off" in line]
    assert [line.split()[0] for line in found] == ["FlashAttention-3,", "Liger", "attention's"]
    assert "A100" not in found[0] and "A100" in found[1]
    assert "(not installed here), which costs" in found[0]
    assert found[2].endswith("get it by --set model.keep_attention=true")
    costs = off["levers"][1]["gpu_hours"]
    installed(False, True)
    fused = modelled(tmp_path, 8, "model.keep_attention=false")
    for before, after in zip(off["hours"], fused["hours"], strict=True):
        gpu, kind = before["gpu"], "training_gpu_hours"
        assert before[kind] - after[kind] == pytest.approx(costs[gpu])
        assert before["mfu"] == off["mfu"][gpu] < after["mfu"]
    text = render(off)
    assert "OFF: not installed here" in text and "OFF: model.keep_attention is false" in text
    assert "on: installed here" in render(on)


def test_the_hours_of_a_phase_are_those_of_its_bins(tmp_path):
    report = modelled(tmp_path, 8, "train.phase_epochs={B: 0}", "rounds=1", "staging=reuse")
    phase, found = report["phases"][0], h100(report)
    bin_s = found["phases"]["A"]["bin_s"]
    assert list(bin_s) == [
        *("matrix products", "attention", "memory", "communication", "waiting"),
    ]
    hours = 3 * phase["bins"] * sum(bin_s.values()) / 3600
    assert found["training_gpu_hours"] == pytest.approx(hours)
    peak_s = phase["flops"] / phase["bins"] / 989e12
    assert found["phases"]["A"]["mfu"] == pytest.approx(peak_s / sum(bin_s.values()))
    assert found["phases"]["A"]["mfu"] == pytest.approx(found["mfu"])
    assert bin_s["waiting"] == pytest.approx(
        sum(list(bin_s.values())[:3]) * (1 / phase["utilisation"] - 1)
    )


def test_a_measured_mfu_stands_in_for_the_model(few):
    report = few()
    assert report["levers"] == [] and list(report["mfu"].values()) == pytest.approx([0.4] * 3)
    assert list(h100(report)["phases"]["A"]["bin_s"]) == ["compute", "communication", "waiting"]
    assert "GPU-h of training that it saves" not in render(report)


def test_a_zero_stage_that_fits_and_is_faster_is_named(tmp_path):
    def stages(world: int, *keys: str) -> list[str]:
        report = modelled(tmp_path, world, *keys)
        return [line.split()[1] for line in report["advice"] if "communicates less" in line]

    adapters = ("lora.r=32", "train.capacity_tokens=6400", "train.global_batch_examples=512")
    assert stages(64, *adapters) == ["train.deepspeed=ds_configs/zero1.json"]
    assert stages(64, *adapters, "train.deepspeed=ds_configs/zero1.json") == []
    assert stages(1, *adapters) == [] == stages(8)  # whole bins hide what they communicate
    # What does not fit anywhere is no advice.
    assert (
        stages(64, *adapters, "model.base=Qwen/Qwen3-32B", "model.loss_chunk_tokens=400000") == []
    )


def test_healthy_work_that_would_pass_for_a_hang_is_named(tmp_path):
    def silent(*keys: str) -> list[str]:
        lines = [x for x in modelled(tmp_path, 8, *keys)["advice"] if x.startswith("hang_minutes")]
        return [line.split(":")[1].split(" takes")[0].strip() for line in lines]

    assert silent() == []
    assert silent("hang_minutes=0.5") == [
        *("a step of phase A on 8 x A100 40 GB", "a checkpoint"),
    ]
    assert "an export" in silent("hang_minutes=0.1")


def h100(report: dict) -> dict:
    return next(h for h in report["hours"] if h["gpu"] == "H100 80 GB")


def test_a_grounded_schedule_costs_a_part_of_a_forward_for_each_trace_set(few):
    found = h100(few("schedule=grounded", "grounding.layer=0.25", "grounding.fit_steps=10"))
    stages = found["stage_gpu_hours"]
    assert list(stages) == [
        "codebook",
        *("traces_pi1_phaseA", "train_pi1_phaseA", "traces_pi1_phaseB", "train_pi1_phaseB"),
        *("traces_pi2_phaseB", "train_pi2_phaseB", "traces_pi3_phaseB", "train_pi3_phaseB"),
    ]
    # X and C of each row through 9 of 36 layers, without a head.
    each = QWEN3["4B"].forward_flops(80 * 110, 80 * 110 * 111 / 2) / 4 / (0.4 * 989e12) / 3600
    assert stages["traces_pi1_phaseA"] == stages["traces_pi3_phaseB"] == pytest.approx(each)
    # 2 steps of 40 tokens in each row: 10 of 160.
    assert stages["codebook"] == pytest.approx(each / 16)
    assert found["grounding_gpu_hours"] == pytest.approx(4 * each + each / 16)
    assert found["trace_gpu_hours"] == 0
    # A codebook that is there is not fitted, and all steps are no more than all steps.
    taken = h100(few("schedule=grounded", "grounding.codebook=x"))["stage_gpu_hours"]
    whole = h100(few("schedule=grounded", "grounding.layer=0.25"))["stage_gpu_hours"]
    assert taken["codebook"] == 0 and whole["codebook"] == pytest.approx(each)


def test_a_phase_costs_what_its_epochs_are_in_each_round(few):
    one = h100(few())["stage_gpu_hours"]
    other = h100(few("train.phase_epochs={A: [4, 0], B: [1, 0, 2]}", "rounds=3"))
    stages = other["stage_gpu_hours"]
    assert list(stages)[:4] == list(one)[:4] and "train_pi2_phaseA" not in stages
    assert stages["train_pi1_phaseA"] == pytest.approx(4 * one["train_pi1_phaseA"])
    assert stages["train_pi3_phaseB"] == pytest.approx(2 * one["train_pi1_phaseB"])
    assert stages["train_pi1_phaseB"] == pytest.approx(one["train_pi1_phaseB"])
    assert one["traces_pi1_phaseA"] == 0 < one["traces_pi1_phaseB"]


def test_the_baselines_of_a_run_are_counted(few):
    plain, report = few(), few("baselines=[sft_no_cot, pause]", "train.phase_epochs={pause: 2}")
    stages = h100(report)["stage_gpu_hours"]
    assert list(stages)[-2:] == ["train_sft_no_cot", "train_pause"]
    _, _, sft, pause = report["phases"]
    # As many answers as 3 rounds of 2 phases; the prompts and answers of 80 rows, without CoT.
    assert (sft["epochs"], sft["steps"], pause["epochs"], pause["steps"]) == ([6], 60, [2], 20)
    assert 80 * 30 <= sft["tokens"] < 80 * 40
    more = stages["train_sft_no_cot"] + stages["train_pause"]
    training = h100(plain)["training_gpu_hours"]
    assert h100(report)["training_gpu_hours"] == pytest.approx(training + more)
    assert report["disk"]["models"] == pytest.approx(plain["disk"]["models"] * 9 / 7)
    assert report["disk"].get("traces") == plain["disk"].get("traces")
    assert "sft_no_cot" in render(report)


def test_more_candidates_and_a_cot_in_sight_cost_more(few):
    def hours(*keys: str) -> float:
        return h100(few(*keys))["stage_gpu_hours"]["traces_pi1_phaseB"]

    one, four = hours(), hours("traces.best_of=4")
    assert 4 * one < four < 10 * one  # scored too
    assert one < hours("traces.sources.B=[model_with_cot]") < 2 * one


def test_measuring_the_channel_is_counted_and_may_end_a_phase_early(few):
    keys = ("train.channel_rows=8", "train.channel_every_steps=3")
    report = few(*keys, "train.until_channel=0.9")
    phase, found = report["phases"][0], h100(report)
    # 9 steps of the 72 rows that are left: after 3, 6 and 9, and at the end.
    assert (phase["rows"], phase["trace_rows"], phase["steps"]) == (72, 80, 9)
    forward = 8 / 72 * phase["flops"] / 3 / (0.4 * 989e12) / 3600
    assert found["channel_gpu_hours"] == pytest.approx(3 * 4 * forward)
    assert "Upper bounds: a phase ends before" in render(report)
    assert "90% of the answers" in render(report) and "Upper bounds" not in render(few(*keys))


def test_the_text_says_what_the_grounding_stage_takes(few):
    text = render(few("schedule=grounded"))
    assert "grounding stage GPU-h" in text and "2, 0, 0" in text
    vectors = 64 + 128 + 2
    assert f"codebook {4 * vectors * 2560 / 1e6:.1f} MB" in text
    assert few()["disk"].get("codebook") is None


def test_walltimes_follow_the_schedule(tmp_path):
    keys = [f"run_root={tmp_path}", "data.rows=6000", "schedule=grounded", "rounds=2"]
    found = stage_walltimes(load_recipe(FULL, keys), 8)
    assert list(found)[0] == "codebook" and "on 1 x H100" in found["codebook"]
    assert "on 8 x H100" in found["traces_pi2_phaseB"] and "train_pi2_phaseA" not in found
    more = ["train.channel_rows=50", "train.until_channel=0.9", "traces.sources.A=[random]"]
    found = stage_walltimes(load_recipe(FULL, [*keys, *more, "grounding.codebook=x"]), 8)
    assert found["traces_pi1_phaseA"] == "minutes: random traces"
    assert found["codebook"].startswith("minutes: a codebook")
    assert found["train_pi1_phaseA"].startswith("at most about ")
