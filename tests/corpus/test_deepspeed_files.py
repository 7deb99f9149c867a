"""DeepSpeed files that cannot be: one line with file and key, without DeepSpeed being loaded."""

import json
import os
from pathlib import Path

import pytest

from abscot.recipe.deepspeed_file import read_deepspeed_file
from abscot.recipe.load import ROOT
from kit.corpus import refused


def stage3(**zero) -> dict:
    return {"zero_optimization": {"stage": 3, **zero}}


def whole(**keys) -> dict:
    return {**stage3(), **keys}


VALUES = {  # name -> (content, words of the refusal)
    "list": ([1, 2], ["expected a JSON object, found [1, 2]"]),
    "list_of_a_good_one": ([stage3()], ["expected a JSON object"]),
    "string": ("stage 3", ["expected a JSON object"]),
    "number": (3, ["expected a JSON object, found 3"]),
    "null": (None, ["expected a JSON object"]),
    "true": (True, ["expected a JSON object"]),
    "empty_object": ({}, ["zero_optimization: missing", "ds_configs/zero3.json"]),
    "no_zero": ({"bf16": {"enabled": True}}, ["zero_optimization: missing"]),
    "zero_null": ({"zero_optimization": None}, ["zero_optimization: "]),
    "zero_true": ({"zero_optimization": True}, ["zero_optimization: "]),
    "zero_list": ({"zero_optimization": [3]}, ["zero_optimization: "]),
    "zero_number": ({"zero_optimization": 3}, ["zero_optimization: ", "found 3"]),
    "zero_empty": ({"zero_optimization": {}}, ["zero_optimization.stage: missing"]),
    "zero_misspelt": (
        {"zero_optimisation": {"stage": 3}, **stage3()},
        ["zero_optimisation: unknown key; did you mean zero_optimization?"],
    ),
    "stage_0": ({"zero_optimization": {"stage": 0}}, ["zero_optimization.stage", "found 0"]),
    "stage_4": ({"zero_optimization": {"stage": 4}}, ["stage", "or equal to 3", "found 4"]),
    "stage_minus": ({"zero_optimization": {"stage": -1}}, ["stage", "found -1"]),
    "stage_string": ({"zero_optimization": {"stage": "3"}}, ["stage", "integer", "found 3"]),
    "stage_float": ({"zero_optimization": {"stage": 2.5}}, ["stage", "found 2.5"]),
    "stage_true": ({"zero_optimization": {"stage": True}}, ["stage", "found True"]),
    "stage_null": ({"zero_optimization": {"stage": None}}, ["stage", "found None"]),
    "stage_auto": ({"zero_optimization": {"stage": "auto"}}, ["stage", "found auto"]),
    "stage_list": ({"zero_optimization": {"stage": [3]}}, ["stage"]),
    "bucket_auto": (stage3(reduce_bucket_size="auto"), ["reduce_bucket_size", "integer", "auto"]),
    "bucket_float": (stage3(reduce_bucket_size=5.5e8), ["reduce_bucket_size"]),
    "bucket_zero": (stage3(reduce_bucket_size=0), ["reduce_bucket_size", "greater than 0"]),
    "bucket_minus": (stage3(allgather_bucket_size=-1), ["allgather_bucket_size"]),
    "bucket_true": (stage3(reduce_bucket_size=True), ["reduce_bucket_size"]),
    "overlap_string": (stage3(overlap_comm="yes"), ["overlap_comm", "boolean"]),
    "overlap_number": (stage3(overlap_comm=1), ["overlap_comm", "boolean"]),
    "live_string": (stage3(stage3_max_live_parameters="1e9"), ["stage3_max_live_parameters"]),
    "unknown_in_zero": (
        stage3(reduce_bucket=5),
        ["zero_optimization.reduce_bucket: unknown key", "did you mean reduce_bucket_size?"],
    ),
    "cpu_offload": (stage3(cpu_offload=True), ["zero_optimization.cpu_offload: unknown key"]),
    "offload_string": (stage3(offload_optimizer="cpu"), ["offload_optimizer", "found cpu"]),
    "offload_true": (stage3(offload_optimizer=True), ["offload_optimizer"]),
    "offload_null": (stage3(offload_optimizer=None), ["offload_optimizer"]),
    "offload_empty": (stage3(offload_optimizer={}), ["offload_optimizer.device: missing"]),
    "offload_gpu": (stage3(offload_optimizer={"device": "gpu"}), ["device", "'none' or 'cpu'"]),
    "offload_nvme": (stage3(offload_optimizer={"device": "nvme"}), ["device", "found nvme"]),
    "offload_ratio": (
        stage3(offload_optimizer={"device": "cpu", "ratio": 2.0}),
        ["offload_optimizer.ratio", "less than or equal to 1"],
    ),
    "offload_param_of_stage_2": (
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        ["offload_param wants stage 3"],
    ),
    "optimizer": (whole(optimizer={"type": "Adam"}), ["remove optimizer"]),
    "optimizer_null": (whole(optimizer=None), ["remove optimizer"]),
    "scheduler": (whole(scheduler={}), ["remove scheduler"]),
    "batch": (whole(train_batch_size="auto"), ["remove train_batch_size"]),
    "micro_batch": (whole(train_micro_batch_size_per_gpu=4), ["remove train_micro_batch_size"]),
    "accumulation": (whole(gradient_accumulation_steps=2), ["remove gradient_accumulation_steps"]),
    "clipping": (whole(gradient_clipping=1.0), ["remove gradient_clipping"]),
    "fp16": (whole(fp16={"enabled": True}), ["remove fp16"]),
    "autocast": (whole(torch_autocast={"enabled": True}), ["remove torch_autocast"]),
    "all_owned": (whole(optimizer={}, scheduler={}), ["remove optimizer, scheduler"]),
    "bf16_true": (whole(bf16=True), ["bf16: "]),
    "bf16_enabled_string": (whole(bf16={"enabled": "auto"}), ["bf16.enabled"]),
    "bf16_unknown": (whole(bf16={"enable": True}), ["bf16.enable: unknown key", "enabled?"]),
    "data_types_list": (whole(data_types=["fp32"]), ["data_types: "]),
    "data_types_fp64": (whole(data_types={"grad_accum_dtype": "fp64"}), ["grad_accum_dtype"]),
    "communication": (whole(communication_data_type=32), ["communication_data_type"]),
    "steps_per_print": (whole(steps_per_print=0), ["steps_per_print"]),
    "breakdown": (whole(wall_clock_breakdown="no"), ["wall_clock_breakdown"]),
    "predivide": (whole(gradient_predivide_factor=-1.0), ["gradient_predivide_factor"]),
    "profiler": (whole(flops_profiler=7), ["flops_profiler", "found 7"]),
    "tensorboard": (whole(tensorboard=[]), ["tensorboard", "found []"]),
    "unknown": (whole(elasticity_v9=1), ["elasticity_v9: unknown key"]),
    "unknown_empty_name": (whole(**{"": 1}), ["unknown key"]),
    "unknown_long_name": (whole(**{"k" * 100_000: 1}), ["unknown key"]),
    "unknown_with_line_breaks": (whole(**{"a\nb\x1b[31m": 1}), ["a\\nb\\x1b[31m: unknown key"]),
    "value_long": ({"zero_optimization": "x" * 500_000}, ["zero_optimization: "]),
}
TEXTS = {
    "empty": (b"", ["not JSON"]),
    "spaces": (b" \n\t ", ["not JSON"]),
    "cut": (b'{"zero_optimization": {"stage": 3', [":1: not JSON"]),
    "cut_on_line_3": (b'{\n"zero_optimization": {"stage": 3},\n', [":3: not JSON"]),
    "comment": (b'{"zero_optimization": {"stage": 3}} // good', ["not JSON"]),
    "two_objects": (b'{"zero_optimization": {"stage": 3}}{}', ["not JSON (Extra data)"]),
    "single_quotes": (b"{'zero_optimization': {'stage': 3}}", ["not JSON"]),
    "yaml": (b"zero_optimization:\n  stage: 3\n", ["not JSON"]),
    "utf16": ('{"zero_optimization": {"stage": 3}}'.encode("utf-16"), ["not UTF-8 text"]),
    "binary": (bytes(range(256)), ["not UTF-8 text"]),
    "zeros": (bytes(1000), ["not JSON"]),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", ["not UTF-8 text"]),
    "pickle": (b"\x80\x04}\x94\x8c\x01a\x94K\x01s.", ["not UTF-8 text"]),
    "twice": (
        b'{"zero_optimization": {"stage": 3}, "zero_optimization": {"stage": 2}}',
        ['key "zero_optimization" stands there twice'],
    ),
    "stage_twice": (
        b'{"zero_optimization": {"stage": 3, "stage": 0}}',
        ['key "stage" stands there twice'],
    ),
    "nan": (b'{"zero_optimization": {"stage": NaN}}', ["NaN is no JSON number"]),
    "infinity": (b'{"zero_optimization": {"stage": 3}, "x": -Infinity}', ["-Infinity"]),
    "overflow": (
        b'{"zero_optimization": {"stage": 3}, "gradient_predivide_factor": 1e999}',
        ["gradient_predivide_factor", "finite"],
    ),
    "digits": (
        b'{"zero_optimization": {"reduce_bucket_size": ' + b"9" * 5000 + b"}}",
        ["limit"],
    ),
    "deep_lists": (b"[" * 200_000, ["nested too deep"]),
    "deep_objects": (b'{"a":' * 200_000, ["nested too deep"]),
    "surrogate_key": (b'{"\\ud800": 1, "zero_optimization": {"stage": 3}}', ["unicode"]),
    "large": (b" " * (1 << 20) + b"{}", ["1,048,578 bytes"]),
}


@pytest.mark.parametrize(
    "text, words",
    [*((json.dumps(value).encode(), words) for value, words in VALUES.values()), *TEXTS.values()],
    ids=[*VALUES, *TEXTS],
)
def test_a_file_that_cannot_be_is_one_line(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_bytes(text)
    refused(lambda: read_deepspeed_file(path), "train.deepspeed", str(path), *words)


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "make, words",
    [
        (os.mkdir, "no file"),
        (os.mkfifo, "no file"),
        (link, "no file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("gone"), "No such file"),
        (lambda path: None, "No such file"),
    ],
    ids=["directory", "fifo", "dev_zero", "loop", "dangling", "missing"],
)
def test_what_is_no_file_is_one_line(tmp_path, make, words):
    path = tmp_path / "ds.json"
    make(path)
    refused(lambda: read_deepspeed_file(path), str(path), words)


def test_a_name_too_long_is_one_line(tmp_path):
    refused(lambda: read_deepspeed_file(tmp_path / ("x" * 300)), "File name too long")


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_what_is_shipped_is_read(path):
    assert read_deepspeed_file(path) == json.loads(path.read_text())


@pytest.mark.parametrize(
    "config",
    [
        stage3(),
        {"zero_optimization": {"stage": 1}},
        whole(flops_profiler={"enabled": False}, bf16={}, data_types={}),
        stage3(offload_param={"device": "cpu"}, offload_optimizer={"device": "cpu", "ratio": 0.5}),
    ],
    ids=["smallest", "stage_1", "sections", "offload"],
)
def test_other_good_ones_are_read(tmp_path, config):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    assert read_deepspeed_file(path) == config
