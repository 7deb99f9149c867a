"""The model card: header, seal, snippets."""

import json
import re

import pytest

from abscot.common import files
from abscot.reporting import model_card, run_data
from kit.cards import check_trace, run_snippet, snippet
from kit.synthetic_run import make_run


def test_the_card_has_the_hubs_header(published):
    from huggingface_hub import ModelCard

    card = ModelCard.load(published / "README.md")
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
    accuracy, tokens = card.data.eval_results
    assert (accuracy.dataset_type, accuracy.dataset_config, accuracy.dataset_split) == (
        "openai/gsm8k",
        "main",
        "test",
    )
    assert (
        accuracy.metric_type == "accuracy"
        and 0 < accuracy.metric_value < 100
        and tokens.metric_value > 5
    )
    for needed in ("| abstract | final | gsm8k |", "2604.22709"):
        assert needed in card.text
    assert "83.2" not in card.text  # published of another benchmark


def test_the_card_has_the_published_numbers_of_math500(tmp_path):
    run = make_run(tmp_path, rounds=1, **{"eval.benchmarks": "[math500]"})
    card = model_card.card(run_data.read(run), "me/mine", 512)
    for needed in ("| 83.2 | 1087 |", "| 84.6 | 1045 |", "| 86.2 | 168 |", "| 72.0 | 432 |"):
        assert needed in card


def test_the_snippets_ask_as_the_evaluation_did(tmp_path):
    protocol = {
        "eval.trace_temperature": 0.7,
        "eval.m_min": 6,
        "eval.m_max": 9,
        "eval.mode_answer_tokens": "{abstract: 77}",
    }
    run = make_run(tmp_path, rounds=1, **{"eval.benchmarks": "[world]", **protocol})
    card = model_card.card(run_data.read(run), "me/mine", 512)
    for needed in (
        "temperature=0.7, top_p=1.0,\n        min_tokens=6,\n        max_tokens=9,",
        "SamplingParams(temperature=0.0, max_tokens=77)",
        "max_new_tokens=77,  # of the answer\n    do_sample=False,",
        'temperature=0.7, top_p=1.0,\n    extra_body={"vllm_xargs": '
        '{"trace_temperature": 0.7, "answer_temperature": 0.0}}',
        "max_tokens=88,",
    ):
        assert needed in card
    for source in re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL):
        compile(source, "snippet", "exec")


@pytest.mark.parametrize(
    ("base", "base_model", "license_"),
    [
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "apache-2.0"),
        ("meta/other-3B", "meta/other-3B", "other"),
        ("LOCAL", None, "other"),
    ],
)
def test_the_card_names_a_base_that_the_hub_knows(tmp_path, base, base_model, license_):
    from huggingface_hub import ModelCard

    base = base.replace("LOCAL", str(tmp_path))
    run = make_run(tmp_path, rounds=1, **{"model.base": base, "eval.benchmarks": "[world]"})
    card = ModelCard(model_card.card(run_data.read(run), "me/mine", 512))
    assert (card.data.base_model, card.data.license) == (base_model, license_)


def test_the_card_leaves_the_seal_on_the_weights(published):
    files.verify(published)
    assert "README.md" not in json.loads((published / "DONE").read_text())["files"]


def test_the_transformers_snippet_and_the_one_of_peft_run_as_published(published, tmp_path):
    """The adapters in their order make the model: it says the same."""
    source = snippet(published, "transformers")
    trace, answer = run_snippet(source, tmp_path)
    check_trace(trace)
    made = source[source.index("inputs = ") :].replace("=MODEL", '=f"{ADAPTERS}/{name}"')
    asked = source[source.index("MESSAGES") : source.index("tokenizer =")]
    again = run_snippet("\n".join([snippet(published, "PEFT"), asked, made]), tmp_path)
    assert again == (trace, answer)
