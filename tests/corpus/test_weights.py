"""Model directories that are no model that can be trained, or asked: one line, nothing written."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from abscot.common import files
from abscot.model.extend import check_base
from abscot.model.foreign import open_model
from abscot.recipe.run import Run
from abscot.recipe.schema import LoraConfig, ModelConfig, Recipe, WorldConfig
from kit.corpus import launch, one_line, refused
from kit.published import make_published

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM, TABLE, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    make_published(root)
    return root


def write(name, content):
    def edit(d):
        data = content if isinstance(content, bytes) else content.encode()
        (d / name).write_bytes(data)

    return edit


def without(*names):
    return lambda d: [(d / name).unlink() for name in names]


def config(file="config.json", drop=(), **changes):
    def edit(d):
        tree = json.loads((d / file).read_text())
        tree = {k: v for k, v in tree.items() if k not in drop} | changes
        (d / file).write_text(json.dumps(tree))

    return edit


def tensors(change, file=WEIGHTS):
    def edit(d):
        held = load_file(d / file)
        change(held)
        save_file(held, d / file, metadata={"format": "pt"})

    return edit


def put(name, tensor):
    return tensors(lambda held: held.update({name: tensor(held) if callable(tensor) else tensor}))


def one_value(name, value):
    return tensors(lambda held: held[name].view(-1)[-1:].fill_(value))


def cut(name, keep):
    return lambda d: os.truncate(d / name, int(keep * (d / name).stat().st_size))


def pipe(name):
    def edit(d):
        (d / name).unlink()
        os.mkfifo(d / name)

    return edit


def folder(name):
    def edit(d):
        (d / name).unlink()
        (d / name).mkdir()

    return edit


def sharded(edit_index=None, drop=None):
    def edit(d):
        held = load_file(d / WEIGHTS)
        names = sorted(held)
        files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
        for file, mine in files.items():
            save_file({n: held[n] for n in mine}, d / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {n: f for f, mine in files.items() for n in mine}}
        (d / WEIGHTS).unlink()
        (d / INDEX).write_text(json.dumps(edit_index(index) if edit_index else index))
        if drop:
            (d / drop).unlink()

    return edit


def map_to(value):
    return lambda index: index | {"weight_map": dict.fromkeys(index["weight_map"], value)}


def bert(d):
    from transformers import BertConfig, BertForMaskedLM

    (d / WEIGHTS).unlink()
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(**shape, intermediate_size=32, vocab_size=400)).save_pretrained(d)


def t5(d):
    from transformers import T5Config, T5ForConditionalGeneration

    (d / WEIGHTS).unlink()
    shape = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16}
    T5ForConditionalGeneration(T5Config(**shape, vocab_size=400)).save_pretrained(d)


def gpt2(d):
    from transformers import GPT2Config, GPT2LMHeadModel

    (d / WEIGHTS).unlink()
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 400}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(d)


def pickled(d):
    torch.save(load_file(d / WEIGHTS), d / "pytorch_model.bin")
    (d / WEIGHTS).unlink()


def both(d):
    shutil.copy(d / WEIGHTS, d / "other.safetensors")
    (d / INDEX).write_text(json.dumps({"weight_map": {NORM: "other.safetensors"}}))


def fewer_rows(d):
    for name in (TABLE, HEAD):
        put(name, lambda held, name=name: held[name][:300].clone())(d)
    config(vocab_size=300)(d)


def tie_of_two_tables(d):
    config(tie_word_embeddings=True)(d)


def no_template(d):
    (d / "chat_template.jinja").unlink(missing_ok=True)
    config("tokenizer_config.json", drop=("chat_template",))(d)


def template(text):
    def edit(d):
        (d / "chat_template.jinja").write_text(text)

    return edit


def vocab_is_a_list(d):
    tree = json.loads((d / "tokenizer.json").read_text())
    tree["model"]["vocab"] = list(tree["model"]["vocab"])
    (d / "tokenizer.json").write_text(json.dumps(tree))


def no_end(d):
    tree = (d / "tokenizer.json").read_text().replace("<|im_end|>", "<|over|>")
    (d / "tokenizer.json").write_text(tree)
    config("tokenizer_config.json", eos_token=None, extra_special_tokens=[])(d)


def damaged_after_done(d):
    files.seal(d)
    held = load_file(d / WEIGHTS)
    held[NORM][0] += 1
    save_file(held, d / WEIGHTS, metadata={"format": "pt"})


CUSTOM = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
CODE = "model.trust_remote_code=true"
BAD = {  # case -> (what is done to a good directory, words of the line)
    # weights against the config
    "a_tensor_missing": (tensors(lambda h: h.pop(NORM)), [NORM, "is missing"]),
    "a_layer_missing": (
        tensors(lambda h: [h.pop(n) for n in list(h) if ".layers.1." in n]),
        ["2 layers, the weights have 1"],
    ),
    "the_head_missing": (tensors(lambda h: h.pop(HEAD)), [HEAD, "is missing"]),
    "more_layers_in_config": (
        config(num_hidden_layers=3, layer_types=None),
        ["3 layers, the weights have 2"],
    ),
    "nine_thousand_layers_in_config": (
        config(num_hidden_layers=9000, layer_types=None),
        ["9000 layers, the weights have 2"],
    ),
    "a_million_layers_in_config": (
        config(num_hidden_layers=1_000_000, layer_types=None),
        ["num_hidden_layers", "1000000"],
    ),
    "fewer_layers_in_config": (
        config(num_hidden_layers=1, layer_types=None),
        ["model.layers.1", "no place"],
    ),
    "an_extra_tensor": (put("model.foo.weight", torch.zeros(3)), ["model.foo.weight", "no place"]),
    "an_extra_tensor_with_a_terrible_name": (
        put("model.\x1b[31m\n" + "x" * 3000, torch.zeros(3)),
        ["no place"],
    ),
    "a_short_norm": (put(NORM, torch.zeros(3)), [NORM, "another shape"]),
    "a_norm_of_two_dimensions": (put(NORM, torch.zeros(64, 1)), [NORM, "another shape"]),
    "a_scalar_norm": (put(NORM, torch.tensor(1.0)), [NORM, "another shape"]),
    "another_hidden_size": (config(hidden_size=128), ["another shape"]),
    "another_vocab_size": (config(vocab_size=384), ["another shape"]),
    "another_head_dim": (config(head_dim=16), ["another shape"]),
    "tied_in_config_but_two_tables": (tie_of_two_tables, ["tie_word_embeddings"]),
    "nan": (one_value(NORM, float("nan")), [NORM, "NaN"]),
    "infinity": (one_value(TABLE, float("inf")), [TABLE, "infinity"]),
    "minus_infinity_in_bf16": (
        tensors(lambda h: h.update({NORM: torch.full((64,), -float("inf")).bfloat16()})),
        [NORM, "infinity"],
    ),
    "nan_alone_in_a_large_table": (
        tensors(lambda h: h[HEAD][100, 7:8].fill_(float("nan"))),
        [HEAD, "NaN"],
    ),
    "integers_for_weights": (
        tensors(lambda h: h.update({NORM: h[NORM].to(torch.int8)})),
        [NORM, "I8", "quantization_config"],
    ),
    "fp8_without_a_scale": (
        tensors(lambda h: h.update({NORM: h[NORM].to(torch.float8_e4m3fn)})),
        [NORM, "F8_E4M3"],
    ),
    "damaged_after_done": (damaged_after_done, [WEIGHTS, "checksum"]),
    # safetensors files
    "no_weights": (without(WEIGHTS), [WEIGHTS, "no "]),
    "empty_weights": (write(WEIGHTS, b""), [WEIGHTS, "safetensors"]),
    "cut_weights": (cut(WEIGHTS, 0.7), [WEIGHTS, "not a whole safetensors file"]),
    "cut_header": (cut(WEIGHTS, 0.001), [WEIGHTS, "not a whole safetensors file"]),
    "text_for_weights": (write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), [WEIGHTS]),
    "random_bytes_for_weights": (write(WEIGHTS, bytes(range(256)) * 99), [WEIGHTS]),
    "a_huge_header": (write(WEIGHTS, b"\xff" * 7 + b"\x7f" + b"{}"), [WEIGHTS]),
    "no_tensors": (tensors(lambda h: h.clear()), ["missing"]),
    "weights_are_a_pipe": (pipe(WEIGHTS), [WEIGHTS]),
    "weights_are_a_directory": (folder(WEIGHTS), [WEIGHTS]),
    "only_a_pickle": (pickled, ["pytorch_model.bin", "safetensors"]),
    "pickle_by_another_name": (
        lambda d: (d / WEIGHTS).rename(d / "consolidated.00.pth"),
        ["consolidated.00.pth", "safetensors"],
    ),
    "only_gguf": (lambda d: (d / WEIGHTS).rename(d / "model.gguf"), ["model.gguf"]),
    "single_file_and_index": (both, [WEIGHTS, INDEX]),
    # the index
    "a_shard_missing": (sharded(drop="b.safetensors"), ["b.safetensors", "missing"]),
    "index_is_empty": (sharded(lambda i: {}), [INDEX, "weight_map"]),
    "index_is_a_list": (sharded(lambda i: [1]), [INDEX, "list"]),
    "weight_map_is_a_list": (sharded(lambda i: {"weight_map": [1]}), [INDEX, "weight_map"]),
    "weight_map_leads_out": (sharded(map_to("../a.safetensors")), [INDEX, "../a.safetensors"]),
    "weight_map_to_a_pickle": (sharded(map_to("a.bin")), [INDEX, "a.bin"]),
    "weight_map_to_numbers": (sharded(map_to(3)), [INDEX, "3"]),
    "weight_map_to_another_shard": (sharded(map_to("a.safetensors")), [INDEX, "a.safetensors"]),
    "index_cut": (lambda d: (sharded()(d), cut(INDEX, 0.5)(d)), [INDEX, "not JSON"]),
    "index_binary": (lambda d: (sharded()(d), write(INDEX, b"\xff\x00")(d)), [INDEX, "not text"]),
    # config.json
    "no_config": (without("config.json"), ["config.json"]),
    "config_empty": (write("config.json", ""), ["config.json:1", "not JSON"]),
    "config_binary": (write("config.json", b"\x80\x81\x82"), ["config.json", "not text"]),
    "config_cut": (cut("config.json", 0.5), ["config.json", "not JSON"]),
    "config_a_list": (write("config.json", "[]"), ["config.json", "list"]),
    "config_null": (write("config.json", "null"), ["config.json"]),
    "config_deep": (write("config.json", "[" * 100_000), ["config.json"]),
    "config_of_5000_digits": (write("config.json", '{"a": ' + "9" * 5000 + "}"), ["config.json"]),
    "config_with_a_bom": (write("config.json", b"\xef\xbb\xbf{}"), ["config.json"]),
    "config_is_a_pipe": (pipe("config.json"), ["config.json"]),
    "config_is_a_directory": (folder("config.json"), ["config.json"]),
    "config_without_model_type": (config(drop=("model_type",)), ["model_type"]),
    "model_type_unknown": (config(model_type="quark"), ["model_type", "quark"]),
    "model_type_a_list": (config(model_type=["qwen3"]), ["model_type"]),
    "model_type_terrible": (config(model_type="\x1b[2J" + "z" * 9999), ["model_type"]),
    "hidden_size_a_word": (config(hidden_size="big"), ["hidden_size", "big"]),
    "hidden_size_negative": (config(hidden_size=-64), ["hidden_size", "-64"]),
    "hidden_size_huge": (config(hidden_size=10**15), ["hidden_size"]),
    "hidden_size_a_float": (config(hidden_size=64.5), ["hidden_size"]),
    "vocab_size_zero": (config(vocab_size=0), ["vocab_size"]),
    "layers_true": (config(num_hidden_layers=True), ["num_hidden_layers"]),
    "heads_zero": (config(num_attention_heads=0), ["num_attention_heads"]),
    "no_positions": (config(max_position_embeddings=0), ["max_position_embeddings"]),
    "positions_a_word": (config(max_position_embeddings="many"), ["max_position_embeddings"]),
    "eps_nan": (config(rms_norm_eps=float("nan")), ["rms_norm_eps", "nan"]),
    "eps_negative": (config(rms_norm_eps=-1.0), ["rms_norm_eps", "-1.0"]),
    "theta_zero": (config(rope_theta=0), ["rope_theta"]),
    "theta_infinite": (config(rope_theta=float("inf")), ["rope_theta", "inf"]),
    "dtype_unknown": (config(dtype="float12"), ["float12"]),
    "activation_unknown": (config(hidden_act="wow"), ["wow"]),
    "rope_unknown": (config(rope_parameters={"rope_type": "wow", "rope_theta": 1}), ["wow"]),
    "architectures_of_another_task": (
        config(architectures=["Qwen3ForSequenceClassification"]),
        ["Qwen3ForSequenceClassification", "causal"],
    ),
    "a_bert": (bert, ["BertForMaskedLM", "not a causal LM"]),
    "a_t5": (t5, ["T5ForConditionalGeneration", "not a causal LM"]),
    "its_own_code": (config(model_type="own", auto_map=CUSTOM), [CODE]),
    "its_own_tokenizer_code": (
        config("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}),
        ["tokenizer_config.json", CODE],
    ),
    "generation_config_cut": (cut("generation_config.json", 0.5), ["generation_config.json"]),
    "generation_config_a_list": (write("generation_config.json", "[]"), ["list"]),
    # the tokenizer
    "no_tokenizer": (without("tokenizer.json"), ["tokenizer.json"]),
    "tokenizer_empty": (write("tokenizer.json", ""), ["tokenizer.json"]),
    "tokenizer_binary": (write("tokenizer.json", b"\xff\xfe\x00"), ["tokenizer.json", "not text"]),
    "tokenizer_cut": (cut("tokenizer.json", 0.5), ["tokenizer.json"]),
    "tokenizer_a_list": (write("tokenizer.json", "[]"), ["tokenizer.json", "list"]),
    "tokenizer_of_nothing": (write("tokenizer.json", "{}"), ["tokenizer"]),
    "tokenizer_vocab_a_list": (vocab_is_a_list, ["tokenizer"]),
    "tokenizer_is_a_pipe": (pipe("tokenizer.json"), ["tokenizer"]),
    "tokenizer_config_is_a_directory": (folder("tokenizer_config.json"), ["tokenizer_config.json"]),
    "no_end_of_turn": (no_end, ["eos token"]),
    "template_binary": (write("chat_template.jinja", b"\xff\xfe\x00"), ["tokenizer"]),
    "tokenizer_config_cut": (cut("tokenizer_config.json", 0.5), ["tokenizer_config.json"]),
    "tokenizer_config_a_list": (write("tokenizer_config.json", "[]"), ["tokenizer_config.json"]),
    "no_chat_template": (no_template, ["chat template"]),
    "template_that_does_not_parse": (template("{% for %}"), ["chat template"]),
    "template_that_leaves_turns_out": (template("hello"), ["chat template"]),
    "template_that_raises": (template("{{ raise_exception('no') }}"), ["chat template"]),
    "template_that_divides_by_zero": (template("{{ 1 / 0 }}"), ["tokenizer"]),
    "template_that_wants_files": (
        template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        ["tokenizer"],
    ),
    "tokenizer_larger_than_the_table": (fewer_rows, ["326", "300 rows"]),
}
UNTRAINABLE = {  # transformers and vLLM can ask them
    "a_gpt2": (gpt2, ["GPT2LMHeadModel", "packed attention"]),
    "a_sliding_window": (
        config(sliding_window=32, use_sliding_window=True, layer_types=["sliding_attention"] * 2),
        ["sliding window"],
    ),
    "quantised": (
        config(quantization_config={"quant_method": "awq", "bits": 4}),
        ["quantised"],
    ),
}


@pytest.mark.parametrize("case", ["no_config", "cut_weights", "nan", "a_bert", "no_tokenizer"])
def test_evaluation_of_it_writes_nothing(case, published, tmp_path, capfd, monkeypatch):
    directory = copy_of(published, tmp_path, "final")
    edit, words = BAD[case]
    edit(directory)
    arguments = ("--model", str(directory), "--set", f"run_root={tmp_path / 'runs'}")
    code, line = launch(capfd, monkeypatch, "evaluate.py", *arguments)
    assert code == 2, line
    one_line(line, f"--model: {directory}", *words)
    assert not (tmp_path / "runs").exists()


SHAPED = ("config_without_model_type", "hidden_size_huge")  # the numbers are there
ADAPTER = "adapter_config.json"
LORA_FILE = "adapter_model.safetensors"
BAD_ADAPTERS = {
    "config_cut": (cut(ADAPTER, 0.5), [ADAPTER, "not JSON"]),
    "config_a_list": (write(ADAPTER, "[]"), [ADAPTER, "list"]),
    "another_kind": (config(ADAPTER, peft_type="PROMPT_TUNING"), ["PROMPT_TUNING", "LORA"]),
    "megatron": (
        config(ADAPTER, megatron_config={}, megatron_core="antigravity"),
        [ADAPTER, "megatron_config"],
    ),
    "damaged_after_done": (
        lambda d: (
            files.seal(d),
            tensors(lambda h: h["base_model.model.lm_head.weight"].add_(1), LORA_FILE)(d),
        ),
        ["adapter_model.safetensors", "checksum"],
    ),
    "no_kind": (config(ADAPTER, drop=("peft_type",)), [ADAPTER, "LORA"]),
    "no_base": (config(ADAPTER, base_model_name_or_path=None), ["base_model_name_or_path"]),
    "base_gone": (config(ADAPTER, base_model_name_or_path="/gone"), ["/gone", "no such directory"]),
    "base_on_the_hub_without_network": (
        config(ADAPTER, base_model_name_or_path="nobody/nothing-here"),
        ["nobody/nothing-here", "network"],
    ),
    "base_an_adapter_too": (
        lambda d: config(ADAPTER, base_model_name_or_path=str(d))(d),
        ["base_model_name_or_path", "is an adapter too"],
    ),
    "base_without_weights": (
        lambda d: config(ADAPTER, base_model_name_or_path=str(d.parent))(d),
        ["base_model_name_or_path", "no config.json"],
    ),
    "base_a_number": (config(ADAPTER, base_model_name_or_path=3), ["base_model_name_or_path"]),
    "rank_of_another": (config(ADAPTER, r=8), ["not an adapter of its base"]),
    "modules_of_another": (
        config(ADAPTER, target_modules=["query_key_value"]),
        ["not an adapter of its base"],
    ),
    "a_key_of_nobody": (config(ADAPTER, r="four"), ["not an adapter of its base"]),
    "only_a_pickle": (
        lambda d: (d / "adapter_model.safetensors").rename(d / "adapter_model.bin"),
        ["adapter_model.bin", "adapter_model.safetensors"],
    ),
    "weights_cut": (cut("adapter_model.safetensors", 0.6), ["adapter_model.safetensors"]),
    "weights_nan": (
        tensors(
            lambda h: h["base_model.model.lm_head.weight"].fill_(float("nan")),
            "adapter_model.safetensors",
        ),
        ["NaN"],
    ),
    "a_tensor_missing": (
        tensors(
            lambda h: h.pop("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"),
            "adapter_model.safetensors",
        ),
        ["not an adapter of its base"],
    ),
    "the_head_missing": (
        tensors(
            lambda h: [h.pop(n) for n in list(h) if "lm_head" in n], "adapter_model.safetensors"
        ),
        ["not an adapter of its base"],
    ),
    "tables_of_two_sizes": (
        tensors(
            lambda h: h.update({"base_model.model.lm_head.weight": torch.zeros(300, 64)}),
            "adapter_model.safetensors",
        ),
        ["300 and 327 rows"],
    ),
    "an_extra_tensor": (
        tensors(
            lambda h: h.update({"base_model.model.foo": torch.zeros(1)}),
            "adapter_model.safetensors",
        ),
        ["base_model.model.foo"],
    ),
    "and_a_model_too": (
        lambda d: shutil.copy(d.parent / "published" / "final" / WEIGHTS, d / WEIGHTS),
        [ADAPTER, WEIGHTS],
    ),
}


def copy_of(published, tmp_path, part):
    directory = tmp_path / "model"
    shutil.copytree(published / part, directory)
    (tmp_path / "published").symlink_to(published)
    return directory


@pytest.mark.parametrize("case", [*BAD, *UNTRAINABLE])
def test_a_base_that_cannot_be_trained(case, published, tmp_path, capfd, monkeypatch):
    directory = copy_of(published, tmp_path, "final")
    edit, words = (BAD | UNTRAINABLE)[case]
    edit(directory)
    keys = (f"run_root={tmp_path / 'runs'}", f"model.base={directory}")
    arguments = [word for key in keys for word in ("--set", key)]
    code, line = launch(capfd, monkeypatch, "extend.py", *arguments)
    assert code == 2, line
    one_line(line, str(directory), *words)
    assert "model.base: " in line or case == "damaged_after_done"
    assert not (tmp_path / "runs").exists()


def asked(tmp_path, name):
    recipe = Recipe(
        name="tiny",
        run_root=str(tmp_path / "runs"),
        model=ModelConfig(dtype="fp32"),
        world=WorldConfig(),
    )
    return lambda: open_model(recipe, Run.of(recipe), str(name))


@pytest.mark.parametrize("case", BAD)
def test_a_model_that_cannot_be_asked(case, published, tmp_path):
    directory = copy_of(published, tmp_path, "final")
    edit, words = BAD[case]
    edit(directory)
    line = refused(asked(tmp_path, directory), str(directory), *words)
    assert line.startswith("--model: ") or case == "damaged_after_done"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "case",
    [
        "no_config",
        *(c for c in BAD if c.startswith(("config_", "hidden_size")) and c not in SHAPED),
    ],
)
def test_a_plan_for_a_base_that_has_no_shape(case, published, tmp_path, capfd, monkeypatch):
    directory = copy_of(published, tmp_path, "final")
    BAD[case][0](directory)
    keys = (f"run_root={tmp_path / 'runs'}", f"model.base={directory}")
    arguments = [word for key in keys for word in ("--set", key)]
    code, line = launch(capfd, monkeypatch, "plan.py", *arguments)
    assert code == 2, line
    one_line(line, str(directory), "config.json")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_an_adapter_that_cannot_be_merged(case, published, tmp_path):
    directory = copy_of(published, tmp_path, "adapters/pi1_phaseA")
    edit, words = BAD_ADAPTERS[case]
    edit(directory)
    recipe = Recipe(
        name="tiny",
        run_root=str(tmp_path / "runs"),
        model=ModelConfig(base=str(directory), dtype="fp32"),
        lora=LoraConfig(),
        world=WorldConfig(),
    )
    named = case != "damaged_after_done"  # that line begins with the file
    line = refused(lambda: check_base(recipe, Run.of(recipe)), str(directory), *words)
    assert not named or line.startswith("model.base: ")
    line = refused(asked(tmp_path, directory), str(directory), *words)
    assert not named or line.startswith("--model: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name, words",
    [
        ("/gone/model", ["no such directory"]),
        ("./gone", ["no such directory"]),
        ("nobody/nothing-here", ["network"]),
        ("nobody/nothing/final", ["no such directory", "network"]),
        ("no body/nothing here", ["no such directory"]),
        ("~nobody/x/y", ["no such directory"]),
    ],
)
def test_a_model_that_is_not_there(name, words, tmp_path):
    refused(asked(tmp_path, name), name, *words)


def test_a_file_for_a_model_and_a_folder_of_models(published, tmp_path):
    refused(asked(tmp_path, published / "final" / WEIGHTS), "not a directory")
    refused(asked(tmp_path, published), "no config.json", "base, final")


def test_the_good_ones_are_not_refused(published, tmp_path):
    shards = copy_of(published, tmp_path, "final")
    sharded()(shards)
    adapter = published / "adapters" / "pi1_phaseA"
    prints = {asked(tmp_path, d)().fingerprint for d in (published / "final", shards, adapter)}
    assert len(prints) == 3
