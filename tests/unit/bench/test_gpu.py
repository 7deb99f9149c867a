"""`bench.py gpu`: what a part's time, a package that is missing and a case that breaks cost, and
what the scorecard then says.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace

import psutil
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from abscot.bench import gpu, gpu_exact, gpu_kernels, gpu_step, gpu_trainer, tools
from abscot.bench.gpu_command import Command, json_of
from abscot.bench.gpu_machine import unpinned
from abscot.bench.gpu_part import BINS, LeftOut, Part, documents_of
from abscot.bench.gpu_scorecard import Scorecard, text
from abscot.common.errors import UserError
from abscot.method import masks
from abscot.method.phases import BOTTLENECK, loop
from abscot.model import attention

MACHINE = {
    "device": "NVIDIA H100",
    "gpus": 1,
    "torch": "2.13.0",
    "packages": {"torch": "2.13.0"},
    "flash_attention_3": True,
    "liger": False,
}
SPEED = {"tokens_per_s": 1e4, "mfu": 0.4, "peak_bytes": 2e10}


@pytest.fixture
def card(tmp_path):
    return Scorecard(tmp_path / "card.json")


@pytest.fixture
def part(card):
    card.begin("step", machine=MACHINE, tiny=False, cases={}, left_out={})
    return Part("step", card, time.time() + 100, MACHINE)


def test_a_case_without_time_is_left_out_and_a_broken_one_costs_no_other(part, card, capsys):
    def broken():
        raise ZeroDivisionError("no\nway")

    def cut_off():
        raise subprocess.TimeoutExpired("x", 1)

    def elsewhere():
        raise LeftOut("has no GPU for it")

    part.known = {"before"}
    asked = [(1000, "long", dict), (1, "broken", broken), (1, "cut", cut_off)]
    asked += [(1, "nan", lambda: {"mfu": float("nan")}), (1, "elsewhere", elsewhere)]
    for needs_s, name, run in [*asked, (1, "before", broken), (1, "good", lambda: SPEED)]:
        part.case(name, needs_s, run)
    kept, said = card.read()["step"], capsys.readouterr().out
    assert kept["cases"].keys() == {"broken", "nan", "good"} and kept["cases"]["good"] == SPEED
    assert kept["cases"]["broken"] == {"error": "ZeroDivisionError: no way"}
    assert "not JSON compliant" in kept["cases"]["nan"]["error"]
    assert kept["left_out"].keys() == {"long", "cut", "elsewhere"}
    assert "takes about 1000 s, 100 s were left" in kept["left_out"]["long"]
    assert said.count("left out: ") == 3 and said.count("FAILED: ") == 2
    assert "before: measured before" in said
    assert [line for line in text(card.read()).splitlines() if "no way" in line] == [
        "  broken: FAILED: ZeroDivisionError: no way"
    ]


def test_a_command_is_cut_off_with_all_it_has_started(tmp_path):
    program = "import subprocess as s; p = s.Popen(['sleep', '60']); print(p.pid); p.wait()"
    began_s = time.monotonic()
    with (
        pytest.raises(subprocess.TimeoutExpired),
        Command([sys.executable, "-c", program], tmp_path / "log") as command,
    ):
        assert command.wait(10, lambda: bool(command.lines)) is None
        command.wait(0.2)
    assert time.monotonic() - began_s < 10
    ((_, child),) = command.lines
    wait_until_gone(int(child))


def wait_until_gone(pid: int) -> None:
    ends_s = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def test_lines_of_a_command_come_with_their_seconds(tmp_path):
    program = "import time; print('one'); time.sleep(0.3); print('two', end='')"
    with Command([sys.executable, "-c", program], tmp_path / "log") as command:
        assert command.wait(20) == 0
    assert [line for _, line in command.lines] == ["one", "two"]
    assert command.seconds_at("two") - command.seconds_at("one") > 0.2
    assert command.seconds_at("three") is None


def test_what_a_module_prints_last_is_its_result_and_its_error_is_one_line(tmp_path):
    with pytest.raises(RuntimeError, match=r"^exit 1: .*No module named .*; its log: "):
        json_of(["no_such_module"], tmp_path / "log", 20)


def test_parts_that_run_at_the_same_time_keep_each_others_results(card):
    def write(part: str) -> None:
        card.begin(part, machine=MACHINE, cases={})
        for number in range(20):
            card.put_in(part, "cases", str(number), {"n": number})

    threads = [threading.Thread(target=write, args=(part,)) for part in ("step", "kernels")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tree = card.read()
    assert list(tree) == ["kernels", "step"]
    assert all(len(tree[part]["cases"]) == 20 for part in ("step", "kernels"))


@pytest.mark.parametrize("content", ["[]", '{"benchmark": "mask"}', '{"step": 3}', "{"])
def test_another_file_is_refused_before_anything_is_measured(card, content):
    card.path.write_text(content)
    with pytest.raises(UserError, match="delete it, or name another --out"):
        gpu.run(["--tiny", "--out", str(card.path)])
    assert card.path.read_text() == content


def options(**changes) -> Namespace:
    return Namespace(**{"minutes": 1, "again": False, "tiny": False, **changes})


def test_a_part_whose_package_is_missing_is_skipped_with_a_line(card, monkeypatch, capsys):
    monkeypatch.setitem(gpu.NEEDS, "traces", ("torch", "no_such_engine"))
    gpu._run_part(card, "traces", MACHINE, options())
    assert card.read()["traces"]["skipped"].startswith("no_such_engine not installed")
    assert "  skipped: no_such_engine not installed" in capsys.readouterr().out
    assert "  skipped: no_such_engine not installed" in text(card.read())


@pytest.mark.parametrize(
    "how, said",
    [("os.kill(os.getpid(), 11)", "SIGSEGV"), ("sys.exit(3)", "code 3"), ("time.sleep(60)", "0 s")],
)
def test_the_end_of_a_parts_process_is_told(how, said, monkeypatch):
    monkeypatch.setattr(gpu, "FOLLOWED_S", 0)
    program = f"import os, sys, time; {how}"
    limit_s = 0.3 if "sleep" in how else 20
    assert said in gpu._ended_badly([sys.executable, "-c", program], limit_s)


def test_a_broken_part_loses_no_other_and_its_work_is_gone(card, monkeypatch, capsys):
    def broken(command, limit_s):
        (card.work("step") / "base").mkdir()
        return f"ended by {signal.SIGSEGV.name}"

    monkeypatch.setattr(gpu, "_ended_badly", broken)
    card.begin("kernels", machine=MACHINE, cases={"matmul": {"tflops": 700.0}}, left_out={})
    gpu._run_part(card, "step", MACHINE, options())
    assert card.read()["kernels"]["cases"] == {"matmul": {"tflops": 700.0}}
    assert "BROKEN: ended by SIGSEGV" in text(card.read())
    assert "BROKEN: ended by SIGSEGV" in capsys.readouterr().out
    assert sorted(path.name for path in card.path.parent.iterdir()) == ["card.json", "card.lock"]


def test_only_what_went_well_on_such_a_machine_is_known():
    entry = {"machine": MACHINE, "tiny": False, "cases": {"a": SPEED, "b": {"error": "x"}}}
    assert gpu.known_cases(entry, MACHINE, False) == {"a": SPEED}
    assert gpu.known_cases(entry, {**MACHINE, "gpus": 2}, False) == {}
    assert gpu.known_cases(entry, MACHINE, True) == {}
    assert gpu.known_cases({}, MACHINE, False) == {}


def test_the_scorecard_has_every_part_beside_its_anchors(card):
    speeds = {"forward_tflops": 480.0, "backward_tflops": 300.0}
    exact = dict.fromkeys(("out", "query", "key"), 0.004)
    cases = {
        "kernels": {
            "varlen, 8k": speeds,
            "varlen, exact": {**exact, "value": 0.005},
            "flex, exact": {**exact, "value": 0.5},
            "matmul": {"tflops": 700.0},
        },
        "step": {"4B lora": SPEED},
        "trainer": {"4B zero3": {**SPEED, "ranks": 2, "planned_bytes": 3e10, "resume_s": 12.3}},
        "traces": {"chunk": {"handover_kl": 0.001, "traces_per_s": 1.5}},
    }
    for name, found in cases.items():
        card.begin(name, machine=MACHINE, cases=found, left_out={})
    shown = text(card.read())
    for line in (
        "trainer: 1 GPU, NVIDIA H100, torch 2.13.0, FlashAttention-3 active, Liger not active",
        "varlen, 8k 480 300",
        "anchor: FlashAttention-3, 8k, H100 485 320",
        "anchor: FlexAttention, 8k, H100 181 110",
        "varlen, exact 0.004 0.004 0.004 0.005 yes",
        "flex, exact 0.004 0.004 0.004 0.5 NO",
        "matmul: tflops 700",
        "4B lora 1e+04 0.4 20",
        "anchor: a 7B at 8k, H100 0.43",
        "4B zero3 2 1e+04 0.4 20 30",
        "4B zero3: resume 12.3 s",
        "chunk: handover_kl 0.001, traces_per_s 1.5",
    ):
        assert line in " ".join(shown.split()), line


def test_what_is_not_the_pinned_version_is_said():
    found = {"torch": "2.11.0+cu130", "vllm": None, "deepspeed": "0.19.8", "liger_kernel": "?"}
    assert unpinned(found)[0] == "torch 2.11.0+cu130, the project pins 2.13.0"
    assert not any("deepspeed" in line or "vllm" in line for line in unpinned(found))


@pytest.mark.parametrize("pieces", [2**25, 300])
def test_the_fp64_reference_is_the_dense_rule_with_its_gradients(pieces, monkeypatch):
    monkeypatch.setattr(gpu_exact, "PIECE_ENTRIES", pieces)
    packed = tools.synthetic_bin([(3, 9, 2, 6), (5, 30, 4, 9)], pad_to_tokens=72)
    query, key, value, upstream = attention_inputs(72)
    mask = masks.dense_mask(packed.document_id, packed.segment_id, BOTTLENECK)
    out = attention.dense(query, key, value, mask)
    upstream[:, packed.document_id[0] < 0] = 0
    expected = [out, *torch.autograd.grad(out, (query, key, value), upstream)]
    found = gpu_exact.exact_attention(packed, query, key, value, upstream)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def attention_inputs(tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, tokens, 16) for heads in (4, 2, 2)] + [(1, tokens, 4, 16)]
    *qkv, upstream = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [*(x.requires_grad_() for x in qkv), upstream]


def test_an_older_varlen_is_called_as_it_can_be(monkeypatch):
    """Of a torch without grouped queries and windows."""

    def old(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None):
        assert is_causal and q.shape[1] == k.shape[1]
        parts = []
        for (q0, k0), (q1, k1) in itertools.pairwise(zip(cu_q.tolist(), cu_k.tolist())):  # noqa: B905
            mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
            heads_first = (x.transpose(0, 1)[None] for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
            out = scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale)
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    assert gpu_kernels.older_varlen() is None  # the pinned one is called as it is
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old)
    packed = tools.synthetic_bin([(3, 9, 2, 6), (5, 30, 4, 9)])
    *inputs, _ = attention_inputs(68)
    layout = attention.layout_of(packed, "abscot_varlen", BOTTLENECK)
    found = attention.varlen(*inputs, layout, kernel=gpu_kernels.older_varlen())
    mask = masks.dense_mask(packed.document_id, packed.segment_id, BOTTLENECK)
    assert torch.allclose(found, attention.dense(*inputs, mask), atol=1e-12)


def test_phases_without_a_cot_fill_the_bin_with_documents_that_have_none():
    last = loop()[-1].name
    for tokens in BINS:
        documents = gpu_step.phase_documents(last, tokens)
        assert all(c == 0 for _, c, _, _ in documents)
        assert 0.9 * tokens < sum(map(sum, documents)) <= tokens
        packed = tools.synthetic_bin(documents)
        assert len(masks.Layout.of(packed.document_id, packed.segment_id, BOTTLENECK).calls) == 1


def test_the_documents_of_a_bin_fill_it_with_traces_of_one_length():
    for tokens in BINS:
        documents = documents_of(tokens)
        assert sum(map(sum, documents)) == tokens and len({z for _, _, z, _ in documents}) == 1


def test_no_two_cases_have_one_name_and_all_levers_are_there():
    for module in (gpu_step, gpu_trainer):
        for tiny in (True, False):
            names = [case.name for case in module.cases(tiny)]
            assert len(names) == len(set(names))
    cases = gpu_trainer.cases(False)
    assert {case.deepspeed for case in cases} == {"zero3", "zero1"}
    assert {(case.shape, case.kind) for case in cases} == {
        ("4B", "lora"),
        ("4B", "full"),
        ("1.7B", "full"),
        ("0.6B", "full"),
    }
    assert {case.bin_tokens for case in cases} == set(BINS)
    assert {case.keeps_attention for case in cases} == {True, False}
    assert sum(case.to_the_end for case in cases) == sum(case.deterministic for case in cases) == 1


def test_a_model_that_does_not_fit_is_left_out(part):
    part.machine = {**MACHINE, "memory_bytes": 80e9}
    from abscot.model.shape import QWEN3
    from abscot.recipe.load import default_recipe

    recipe = default_recipe(["train.num_gpus=1"])
    with pytest.raises(LeftOut, match=r"plan.py says \d+ GB a rank, the GPU has 80 GB"):
        gpu_trainer.planned_bytes(part, recipe, QWEN3["8B"])
    assert gpu_trainer.planned_bytes(part, recipe, QWEN3["0.6B"]) < 80e9


def test_without_its_packages_the_command_is_one_line():
    """-S: the python of a bare machine."""
    done = subprocess.run(
        [sys.executable, "-S", "launch/bench.py", "gpu"],
        cwd=gpu.ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "is not installed" in done.stderr and "launch/setup.sh" in done.stderr


def test_what_plan_reads_has_the_names_that_it_reads(card):
    card.begin("kernels", machine=MACHINE, cases={}, left_out={})
    part = Part("kernels", card, time.time() - 1, {**MACHINE, "gpus": 0}, tiny=True)
    found = {"varlen, 32k": {"forward_tflops": 400.0, "backward_tflops": 250.0}}
    found |= {"matmul": {"tflops": 700.0}, "copy": {"bytes_per_s": 3e12}}
    card.put("kernels", cases=found)
    gpu_kernels.measure(part)  # there is no time: nothing is measured anew
    kernels = json.loads(card.path.read_text())["kernels"]
    assert {
        "matmul_tflops": 700.0,
        "varlen_forward_tflops_32k": 400.0,
        "varlen_backward_tflops_32k": 250.0,
        "copy_bytes_per_s": 3e12,
    }.items() <= kernels.items()
