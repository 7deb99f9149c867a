"""What an exported model carries for other people's tools."""

import json
import subprocess
import sys
from dataclasses import replace

import jinja2
import jinja2.meta
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from abscot.common import files
from abscot.common.errors import UserError
from abscot.data import toy_base
from abscot.data.chat import ChatTokenizer
from abscot.method.vocab import AbstractVocab, extend_tokenizer, load_tokenizer
from abscot.model.chat_model import ChatModel, DecodingRules, opening_trace
from abscot.model.extend import check_base, extend_base
from abscot.recipe.load import ROOT
from abscot.recipe.run import Run
from abscot.recipe.schema import ModelConfig, TraceConfig
from kit import tiny_run
from kit.tiny_run import make_model, tiny_recipe, tiny_tokenizer

QWEN = ROOT.parent / "shared" / "data" / "qwen3-tokenizer"
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
# Their first and last characters are what Jinja's handling of blanks looks at.
TEMPLATES = {
    "tiny": tiny_run.TEMPLATE,
    "world": toy_base.TEMPLATE,
    "macro": "\n{%- macro end() %}{{ enable_thinking is defined and not enable_thinking }}"
    "{% endmacro -%}\n  {% for m in messages %}{{ m.content }}{{ end() }}\n{% endfor %}\n",
    "blanks": "\n  {{ messages[0].content }} {{ enable_thinking }} \n\n",
    "indented": "{{ messages[0].content }}\n   ",
    "default": "{% set enable_thinking = enable_thinking | default(true) %}{{ enable_thinking }}",
    "block": "{% if add_generation_prompt %}\nx{% endif %}\n",
}


def rendered(tokenizer, template: str, **arguments) -> str:
    return tokenizer.apply_chat_template(TURNS, chat_template=template, tokenize=False, **arguments)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thinking", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
def test_a_generation_prompt_opens_the_trace_and_nothing_else_changes(name, thinking):
    tokenizer, plain = tiny_tokenizer(), TEMPLATES[name]
    opening = opening_trace(plain)

    def prompt(template, **arguments):
        return rendered(tokenizer, template, add_generation_prompt=True, **arguments)

    off = prompt(plain, enable_thinking=False) + "<beginabstract>"
    assert prompt(opening, **thinking) == prompt(opening, abstract=True, **thinking) == off
    direct = prompt(plain, **{"enable_thinking": False} | thinking)
    assert prompt(opening, abstract=False, **thinking) == direct
    for abstract in ({}, {"abstract": True}, {"abstract": False}):
        assert rendered(tokenizer, opening, **abstract, **thinking) == rendered(
            tokenizer, plain, **thinking
        )
    assert opening_trace(opening) == opening


def test_servers_find_the_arguments_of_the_template():
    env = jinja2.Environment()
    for template in TEMPLATES.values():
        found = jinja2.meta.find_undeclared_variables(env.parse(opening_trace(template)))
        assert {"abstract", "enable_thinking", "add_generation_prompt"} <= found


@pytest.fixture(params=["tiny", "qwen3"])
def tokenizer(request):
    if request.param == "tiny":
        return tiny_tokenizer()
    if not QWEN.is_dir():
        pytest.skip(f"no Qwen3 tokenizer at {QWEN}")
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    extend_tokenizer(tokenizer)
    return tokenizer


def write(tokenizer, directory) -> ChatModel:
    chat = ChatModel(tokenizer, DecodingRules.of_tokenizer(tokenizer, 64, TraceConfig(m_max=9)))
    file = directory / DecodingRules.FILE
    if not file.exists():
        directory.mkdir(exist_ok=True)
        file.write_text("{}")
    chat.write(directory)
    return chat


def test_the_ids_are_those_of_training(tokenizer, tmp_path):
    write(tokenizer, tmp_path)
    exported, begin = load_tokenizer(tmp_path), AbstractVocab.of(tokenizer).begin_id
    ours, theirs = ChatTokenizer(tokenizer), ChatTokenizer(exported)
    template = {"add_generation_prompt": True, "return_dict": False}
    for turns in (TURNS, TURNS[1:], [*TURNS, {"role": "assistant", "content": "2"}, TURNS[1]]):
        x = ours.prompts([turns])[0].tolist()
        assert exported.apply_chat_template(turns, **template) == [*x, begin]
        assert exported.apply_chat_template(turns, **template, abstract=False) == x
        assert theirs.prompts([turns])[0].tolist() == x
    for name in ("no_think_suffix", "think_open", "think_close", "turn_end_id"):
        assert np.array_equal(getattr(theirs, name), getattr(ours, name))
    assert exported.chat_template == opening_trace(tokenizer.chat_template)


def test_each_named_template_opens_the_trace_once(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": TEMPLATES["world"], "tool_use": TEMPLATES["block"]}
    write(tokenizer, tmp_path / "round1")
    write(load_tokenizer(tmp_path / "round1"), tmp_path / "round2")
    templates = load_tokenizer(tmp_path / "round2").chat_template
    assert templates == {n: opening_trace(t) for n, t in tokenizer.chat_template.items()}
    assert set(tokenizer.chat_template.values()) == {TEMPLATES["world"], TEMPLATES["block"]}
    (prompt,) = ChatTokenizer(load_tokenizer(tmp_path / "round2")).prompts([TURNS])
    assert prompt.tolist() == ChatTokenizer(tokenizer).prompts([TURNS])[0].tolist()


def test_the_rules_stand_in_the_generation_config_and_loaders_keep_them(tmp_path):
    make_model(tmp_path / "model", tiny_tokenizer(), seed=0)
    file = tmp_path / "model" / DecodingRules.FILE
    before = json.loads(file.read_text()) | {"do_sample": True, "top_k": 20}
    file.write_text(json.dumps(before))
    chat = write(tiny_tokenizer(), tmp_path / "model")
    before.pop("_from_model_config")
    assert json.loads(file.read_text()) == before | {"abstract": chat.rules.model_dump()}
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (lm.generation_config.abstract, lm.generation_config.top_k) == (
        chat.rules.model_dump(),
        20,
    )
    inputs = tiny_tokenizer()("ab", return_tensors="pt")
    assert lm.generate(**inputs, max_new_tokens=3).shape == (1, 5)
    lm.save_pretrained(tmp_path / "again")
    again = GenerationConfig.from_pretrained(tmp_path / "again")
    again.validate(strict=True)
    assert DecodingRules.of(again.to_diff_dict()) == DecodingRules.read(file) == chat.rules


def test_a_model_of_somebody_else_may_carry_all_of_it(tmp_path):
    """An exported model as the base of another run, or asked from outside."""
    make_model(tmp_path / "model", tiny_tokenizer(), seed=0)
    (tmp_path / "model" / files.DONE).unlink()
    write(tiny_tokenizer(), tmp_path / "model")
    config = ModelConfig(base=str(tmp_path / "model"), dtype="fp32")
    recipe = replace(tiny_recipe(tmp_path), model=config)
    run = Run.of(recipe)
    extend_base(recipe, run, check_base(recipe, run))
    assert not (run.base / "custom_generate").exists()
    assert load_tokenizer(run.base).chat_template == opening_trace(tiny_run.TEMPLATE)
    (prompt,) = ChatTokenizer(load_tokenizer(run.base)).prompts([TURNS])
    assert prompt.tolist() == ChatTokenizer(tiny_tokenizer()).prompts([TURNS])[0].tolist()


def rules(**changes) -> dict:
    return {
        "begin_token_id": 1,
        "end_token_id": 2,
        "codebook_token_ids": [3, 4],
        "newline_token_ids": [5],
        "m_min": 0,
        "m_max": 4,
        "trace_temperature": 0,
    } | changes


def test_models_without_rules_have_none():
    assert DecodingRules.of({"eos_token_id": 1}) is None
    assert DecodingRules.of({"abstract": rules()}).m_max == 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"m_min": 5}, "m_min"),
        ({"m_min": -1}, "m_min"),
        ({"m_max": 0}, "m_max"),
        ({"m_max": "4"}, "m_max"),
        ({"m_max": True}, "m_max"),
        ({"trace_temperature": float("nan")}, "trace_temperature"),
        ({"trace_temperature": -0.5}, "trace_temperature"),
        ({"codebook_token_ids": []}, "codebook_token_ids"),
        ({"codebook_token_ids": [3, 3]}, "different"),
        ({"codebook_token_ids": [3, 2]}, "different"),
        ({"end_token_id": 5}, "different"),
        ({"end_token_id": None}, "end_token_id"),
        ({"newline_token_ids": [2**31]}, "newline_token_ids"),
        ({"top_p": 1.0}, "top_p"),
    ],
)
def test_rules_that_are_none_are_refused(changes, words):
    with pytest.raises(UserError, match=f"^generation_config.json: abstract: .*{words}.*export"):
        DecodingRules.of({"abstract": rules(**changes)})
    with pytest.raises(UserError, match="abstract"):
        DecodingRules.of({"abstract": [1]})


def test_the_reader_loads_no_model_library():
    source = (
        "import sys, abscot.model.chat_model\n"
        "print({'torch', 'transformers', 'tokenizers', 'peft'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
