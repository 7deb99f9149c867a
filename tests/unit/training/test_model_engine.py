"""The device of a rank; the DeepSpeed configuration: what the recipe owns, what is shipped."""

import json

import deepspeed
import pytest
import torch

from abscot.common import gpus
from abscot.common.errors import MachineError, UserError
from abscot.model.shape import QWEN3
from abscot.recipe.load import ROOT, load_recipe
from abscot.training import model_engine
from abscot.training.model_engine import deepspeed_config, init_ranks


@pytest.fixture
def joined(monkeypatch):
    """What a rank has told torch and DeepSpeed. CUDA itself and the process group are not there."""
    told = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.append(device))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: told.append("threads"))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda backend, **_: told.append(backend))
    monkeypatch.setattr(model_engine, "use_local_caches", lambda: None)  # for this process's life
    return told


def rank_on(machine, monkeypatch, number: int, local_rank: int, **environ) -> torch.device:
    """The device of a rank on a machine of `number` GPUs; keywords beside its environment say what
    is broken.
    """
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    names = {"RANK": str(local_rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": "16"}
    machine(number, **names, **environ)
    return init_ranks()


@pytest.mark.parametrize(
    "number, local_rank, environ, index",
    [
        (8, 3, {}, 3),
        (8, 1, {gpus.VISIBLE: "4,5", "LOCAL_SIZE": "2"}, 1),
        (8, 3, {gpus.VISIBLE: "3", "LOCAL_WORLD_SIZE": "8"}, 0),  # srun --gpus-per-task=1
        (1, 3, {}, 0),  # its cgroup shows it one
    ],
)
def test_a_rank_takes_its_own_gpu(machine, monkeypatch, joined, number, local_rank, environ, index):
    device = rank_on(machine, monkeypatch, number, local_rank, **environ)
    assert device == torch.device("cuda", index) and joined == [device, "nccl"]


@pytest.mark.parametrize(
    "number, local_rank, environ, said",
    [
        (1, 0, {gpus.VISIBLE: "0,1", "LOCAL_SIZE": "2"}, "2 ranks .* 1 GPU .*--num_gpus 1,"),
        (1, 1, {gpus.VISIBLE: "0,1", "LOCAL_SIZE": "2"}, "2 ranks on this machine"),
        (8, 8, {}, "9 ranks .* 8 GPUs .CUDA_VISIBLE_DEVICES is not set"),
        (8, 0, {"built": None}, "ABSCOT_FLAVOUR=gpu bash launch/setup.sh"),
        (8, 0, {"driver": "535.183.01", "runs": 12_020}, "535.183.01 .*needs driver 580"),
        (8, 0, {"starts": False}, "CUDA does not start"),
    ],
)
def test_a_rank_without_a_gpu_that_works_does_not_train_on_the_cpu(
    machine, monkeypatch, joined, number, local_rank, environ, said
):
    """The first of a machine too, which is the one that tells."""
    with pytest.raises(MachineError, match=said):
        rank_on(machine, monkeypatch, number, local_rank, **environ)
    assert joined == []


@pytest.mark.parametrize("number, wish", [(8, {gpus.ACCELERATOR: "cpu"}), (0, {})])
def test_a_rank_trains_on_the_cpu_where_that_is_meant(machine, monkeypatch, joined, number, wish):
    """DeepSpeed's launcher has set the other variable anew."""
    broken = {"driver": "535.183.01", "runs": 12_020} if number else {}
    wish |= {gpus.VISIBLE: "0,1", "LOCAL_SIZE": "2"}
    device = rank_on(machine, monkeypatch, number, 1, **broken, **wish)
    assert device == torch.device("cpu") and joined == ["threads", "gloo"]
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_every_deepspeed_config_has_explicit_numbers(path):
    text = path.read_text()
    assert '"auto"' not in text
    tree = json.loads(text)
    assert tree["zero_optimization"]["stage"] in (1, 2, 3)
    # the trainer is the one owner of both
    assert "optimizer" not in tree and "scheduler" not in tree


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"zero_optimization": {"stage": 3}, "optimizer": {}}', "remove optimizer"),
        ('{"zero_optimization": ', "not JSON"),
    ],
)
def test_a_deepspeed_file_that_clashes_is_refused(tmp_path, text, says):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match=says):
        deepspeed_config(
            load_recipe(None, [f"train.deepspeed={tmp_path / 'ds.json'}"]), QWEN3["4B"]
        )


def test_the_recipe_owns_batch_clipping_and_precision(tmp_path):
    recipe = load_recipe(None, ["train.grad_clip=0.5", "model.dtype=fp32"])
    config = deepspeed_config(recipe, QWEN3["4B"])
    assert config["gradient_clipping"] == 0.5 and config["bf16"]["enabled"] is False
    assert json.dumps(config).count("auto") == 0


@pytest.mark.parametrize(
    "file, elements",
    [("zero3", 2 * 100_925_440), ("zero3_offload", 2 * 100_925_440), ("cpu", 0), ("zero1", None)],
)
def test_zero3_fetches_two_layers_ahead_where_the_file_names_no_number(file, elements):
    recipe = load_recipe(None, [f"train.deepspeed=ds_configs/{file}.json"])
    config = deepspeed_config(recipe, QWEN3["4B"])
    assert config["zero_optimization"].get("stage3_prefetch_bucket_size") == elements
