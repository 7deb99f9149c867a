"""A real vLLM engine: constrained traces, sessions, shards, evaluation, handover."""

import json
import os
import subprocess
import sys

import pytest

from abscot.common import ranks
from abscot.generation.requests import Completion, codebook_tokens_of
from abscot.recipe.load import ROOT
from kit.rules import RULES
from kit.tiny_run import make_tiny_run

pytestmark = pytest.mark.vllm


def scenarios(root, *kind: str, **environ: str) -> dict:
    """What one engine generated, in a process of its own: vLLM and torch.distributed must not meet
    (vllm#1865).
    """
    make_tiny_run(root)
    out = root / "found.json"
    command = [sys.executable, "-m", "kit.vllm_scenarios", str(root), str(out), *kind]
    environ |= {**ranks.without_ranks(dict(os.environ)), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return scenarios(tmp_path_factory.mktemp("vllm"))


# Each is an engine that starts; this project's own engine has its core in its process.
AS_ON_GPUS = [
    pytest.param(("asynchronous", "apart"), id="asynchronous, apart"),
    pytest.param(("asynchronous",), id="asynchronous", marks=pytest.mark.drill),
    pytest.param(("on_two",), id="on two", marks=pytest.mark.drill),
]


@pytest.mark.parametrize("kind", AS_ON_GPUS)
def test_an_engine_that_runs_as_on_gpus_makes_the_same(found, kind, tmp_path):
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if "on_two" in kind else {}
    other = scenarios(tmp_path, *kind, **environ)
    assert set(other["kind"]) >= set(kind)
    for name, here in found["stages"].items():
        assert other["stages"][name]["stages"] == here["stages"], name
    for mode, told in other["one by one"].items():
        check_one_by_one(mode, told)
        assert told["stages"] == found["one by one"][mode]["stages"]
    for name, here in found["sets"].items():
        there = other["sets"][name]
        if name == "narrow":
            assert there["cut_prompts"] == here["cut_prompts"]
            continue
        assert there["traces"] == here["traces"] and there["published"] == here["published"]
    check_surprisals(other["surprisals"], found["surprisals"]["transformers"])
    check_heard(other["heard"])


def test_traces_hold_the_codebook_only_and_end_between_m_min_and_m_max(found, vocab):
    lengths = set()
    for name in ("one decode", "edited"):
        for stages in found["stages"][name]["stages"]:
            first = stages[0]
            trace = codebook_tokens_of(Completion(**first), vocab, RULES)
            lengths.add(len(trace))
            ended = first["tokens"][-1] == vocab.end_id
            assert (first["finish_reason"] == "stop") == ended
            # At m_max the end is forced: in one decode by a step, else by who asked.
            assert ended or (name == "edited" and len(trace) == RULES.m_max)
    assert len(lengths) > 3


def test_seeded_traces_repeat(found):
    again, once = found["stages"]["again"], found["stages"]["one decode"]
    assert again["stages"] == once["stages"]
    if "asynchronous" not in found["kind"]:
        assert again["scheduled_tokens"] == once["scheduled_tokens"]
    traces = [stages[0]["tokens"] for stages in found["stages"]["one decode"]["stages"]]
    assert len(set(map(tuple, traces))) > len(traces) / 2


def test_an_answer_in_one_decode_is_the_answer_to_the_whole_prompt(found, vocab):
    stages = found["stages"]
    together = [(s[1]["tokens"], s[1]["prompt_tokens"]) for s in stages["one decode"]["stages"]]
    assert together == [(s[0]["tokens"], s[0]["prompt_tokens"]) for s in stages["alone"]["stages"]]

    def trace(row):
        return [token for token in row[0]["tokens"] if token != vocab.end_id]

    rows = zip(stages["edited"]["stages"], stages["one decode"]["stages"], strict=True)
    assert all(trace(edited) == trace(plain) for edited, plain in rows)


def test_an_answer_holds_no_abstract_token_however_it_was_asked_for(found, vocab):
    for name in ("one decode", "edited", "alone"):
        for row in found["stages"][name]["stages"]:
            assert row[-1]["tokens"] and not set(row[-1]["tokens"]) & set(vocab.ids)


def test_an_answer_does_not_compute_its_prompt_again(found):
    """Our count of computed prompt tokens is what vLLM's scheduler says, and that of an answer is a
    few tokens per row. One decode with a short trace may go on behind the limit of its answer, and
    an asynchronous scheduler (GPUs) asks for one token more before it hears of a stop.
    """
    for name in ("one decode", "edited", "alone"):
        run = found["stages"][name]
        stages = [stage for row in run["stages"] for stage in row]
        computed = sum(
            s["prompt_tokens"] - s["cached_tokens"] + len(s["tokens"]) - 1 for s in stages
        )
        room = RULES.m_max * len(run["stages"]) if name == "one decode" else 0
        room += len(stages) if "asynchronous" in found["kind"] else 0
        assert 0 <= run["scheduled_tokens"] - computed <= room
    rows = found["stages"]["one decode"]["stages"]
    first, second = (
        sum(row[i]["prompt_tokens"] - row[i]["cached_tokens"] for row in rows) for i in (0, 1)
    )
    assert second <= 0.05 * first


def test_tokens_come_one_by_one_and_are_those_of_the_completions(found):
    """A step a token; a request that was left on its way takes nothing from the next one."""
    for mode, told in found["one by one"].items():
        check_one_by_one(mode, told)


def check_one_by_one(mode: str, told: dict) -> None:
    stages = [[] for _ in told["stages"]]
    for _, stage, token in told["tokens"]:
        stages[stage].append(token)
    assert stages == told["stages"], mode
    assert told["left"] == [row[1:] for row in told["tokens"][:2]]
    steps = [row[0] for row in told["tokens"]]
    assert steps == sorted(set(steps)) and len(steps) >= 8


def test_transformers_makes_the_same_greedy_traces(found, vocab):
    assert found["greedy"]["transformers"] == found["greedy"]["vllm"]
    lengths = {
        len(codebook_tokens_of(Completion(tokens, "", 0, 0), vocab, RULES))
        for tokens in found["greedy"]["transformers_sampled"].values()
    }
    assert len(lengths) > 1


def test_the_code_that_exports_carry_writes_what_vllm_writes(found, vocab):
    answered = found["greedy"]["answered"]
    assert found["greedy"]["custom_generate"] == answered
    assert len({tokens.index(vocab.end_id) for tokens in answered}) > 1


def test_any_number_of_shards_makes_the_same_traces(found):
    sets = found["sets"]
    assert sets["1"]["traces"] == sets["2"]["traces"] == sets["3"]["traces"]
    assert len(sets["1"]["traces"]) == 40
    assert sets["3"]["published"] == [False, False, True]
    assert sets["1"]["stats"]["cut_prompts"] == 0
    assert "same_prompt_similarity" in sets["1"]["stats"]


def test_an_engine_tells_the_probability_of_many_texts(found):
    """Whatever its prefix cache holds of them."""
    check_surprisals(found["surprisals"], found["surprisals"]["transformers"])


def check_surprisals(said: dict, expected: list) -> None:
    assert [len(row) for row in said["vllm"]] == [1 + i % 9 for i in range(40)]
    assert said["vllm again"] == said["vllm"]
    for row, right in zip(said["vllm"], expected, strict=True):
        assert row == pytest.approx(right, abs=1e-4)


def test_an_engine_is_heard_while_nothing_is_finished(found):
    """Which is minutes, where prompts are long: what waits for a line must hear of each step."""
    check_heard(found["heard"])


def check_heard(heard: dict) -> None:
    told = heard["told"]
    assert told.count(None) == 20 and told.index(None) >= 8  # a trace has nine tokens
    computed = [tokens for tokens in told if tokens is not None]
    assert computed == sorted(computed) and computed[-1] == heard["prompt_tokens"]


def test_the_best_of_several_traces_does_not_depend_on_shards(found):
    one, two = found["sets"]["best 1"], found["sets"]["best 2"]
    assert one["traces"] == two["traces"] != found["sets"]["1"]["traces"]
    for key in ("first_log_p_mean", "best_log_p_mean", "best_not_first_share"):
        assert one["stats"][key] == two["stats"][key] and key not in found["sets"]["1"]["stats"]
    stats = one["stats"]
    assert stats["best_log_p_mean"] > stats["first_log_p_mean"] and stats["best_of"] == 3


def test_prompts_past_the_window_lose_the_middle_of_their_cot_and_are_counted(found):
    assert found["sets"]["narrow"]["cut_prompts"] > 0


def test_result_rows_count_tokens_from_ids(found, vocab):
    rows = found["answers"]["rows"]
    for mode, of_mode in rows.items():
        assert [row["id"] for row in of_mode] == [f"world/{i}" for i in range(5)]
        for row in of_mode:
            assert row["n_total_tokens"] == row["n_reasoning_tokens"] + row["n_response_tokens"]
            assert row["n_abstract_tokens"] == len(row["trace_ids"]) == len(row["trace_tokens"])
            assert set(row["trace_ids"]) <= set(vocab.codebook_ids)
            assert not row["trace_ids"] or row["n_reasoning_tokens"] == row["n_abstract_tokens"] + 2
            assert row["correct"] in (0.0, 1.0) and row["scorer"]
        assert found["answers"]["metas"][mode]["problems"] == 5
    assert all(row["n_reasoning_tokens"] == 0 for row in rows["no_cot"])
    assert all(len(row["trace_ids"]) == RULES.m_max for row in rows["pause"])


def test_edited_modes_edit_the_trace_of_the_abstract_mode(found):
    rows = found["answers"]["rows"]
    for plain, permuted, truncated in zip(
        rows["abstract"], rows["abstract_permuted"], rows["abstract_truncated_32"], strict=True
    ):
        assert sorted(permuted["trace_ids"]) == sorted(plain["trace_ids"])
        assert truncated["trace_ids"] == plain["trace_ids"][:32]
    assert [r["trace_ids"] for r in rows["abstract_permuted"]] != [
        r["trace_ids"] for r in rows["abstract"]
    ]


def test_swapped_traces_are_those_of_the_problems_that_are_named(found):
    """The prefix cache has their prompts from mode abstract, which the same engine was asked."""
    rows, metas = found["answers"]["rows"], found["answers"]["metas"]
    theirs = {row["id"]: row["trace_ids"] for row in rows["abstract"]}
    swapped = rows["abstract_swapped"]
    assert [row["trace_ids"] for row in swapped] == [theirs[row["trace_of"]] for row in swapped]
    assert all(row["trace_of"] != row["id"] for row in swapped)
    assert {row["trace_of"] for row in swapped} == theirs.keys()
    computed = {mode: meta["prompt_tokens_computed"] for mode, meta in metas.items()}
    assert computed["abstract_swapped"][0] == computed["abstract"][0] < computed["verbal"][0]
    assert computed["abstract_swapped"][1] == computed["abstract_permuted"][1]


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_file(found):
    assert found["answers"]["resumed"] == found["answers"]["rows"]["abstract"]
    assert found["answers"]["left_over"] == []


def test_an_engine_that_computes_another_model_than_the_trained_one_is_refused(found):
    """Then the checkpoint that the model was exported from is still there."""
    (wrong, kept), (right, kept_then) = found["handover"]
    assert "not those of the trained weights (KL 0.0" in wrong and kept
    assert "inference.handover_kl is 0.015" in wrong and "exports it again from" in wrong
    assert right is None and not kept_then
