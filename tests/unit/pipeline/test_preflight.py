"""The preflight: lengths, remedies, unknown bases."""

import pytest

from abscot.common.errors import UserError
from abscot.pipeline.preflight import preflight
from abscot.recipe.load import ROOT, load_recipe

FULL = str(ROOT / "launch" / "recipes" / "qwen3-4b-full-600k.yaml")


def test_preflight_before_there_is_data_assumes_and_says_so(tmp_path):
    recipe = load_recipe(FULL, [f"run_root={tmp_path}", "data.rows=6000"])
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
        FULL, [f"run_root={tmp_path}", "staging=reuse", "train.global_batch_examples=8"]
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
    keys.append(f"run_root={tmp_path}")

    def models_bytes(*more: str) -> float:
        report = preflight(load_recipe(FULL, [*keys, *more]), 1, 0.4, file)
        assert [phase["steps"] for phase in report["phases"]] == [10, 10]
        return report["disk"]["models"]

    each = models_bytes() / 5  # the base, and one for each of four trainings
    # After steps 3, 6 and 9; after step 5, as step 10 is the last.
    assert models_bytes("train.export_every_steps=3") == pytest.approx((5 + 4 * 3) * each)
    assert models_bytes("train.export_every_steps=5") == pytest.approx((5 + 4) * each)
