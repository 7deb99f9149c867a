"""Models from elsewhere: their names in files, their fingerprints, what is read again, the hub."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from abscot.common import files
from abscot.model.foreign import make, name_of, open_model
from abscot.recipe.run import Run
from abscot.recipe.schema import EvalConfig, ModelConfig, Recipe, WorldConfig
from kit.corpus import refused
from kit.published import make_published


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    make_published(root)
    return root


def opened(tmp_path, name, **changes):
    recipe = Recipe(
        name="tiny",
        run_root=str(tmp_path),
        model=ModelConfig(dtype="fp32"),
        world=WorldConfig(),
        **changes,
    )
    return open_model(recipe, Run.of(recipe), str(name))


def test_names_are_safe_in_file_names_and_differ_where_paths_do(tmp_path):
    names = [
        "/data/mine/final",
        "/data/yours/final",
        "/other/mine/final",
        "owner/model",
        "./a b/ü;rm -rf/$HOME",
        "/" + "x" * 200 + "/" + "y" * 200,
        "/",
    ]
    found = [name_of(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]{1,80}", name) for name in found), found
    assert found[0].startswith("mine-final-") and found[3].startswith("owner-model-")


def test_the_fingerprint_is_of_the_weights_and_a_second_look_reads_no_weights(
    published, tmp_path, monkeypatch
):
    directory = tmp_path / "model"
    shutil.copytree(published / "final", directory)
    (tmp_path / "tiny" / "results").mkdir(parents=True)
    first = opened(tmp_path, directory)
    assert first.source == str(directory) and first.directory == directory
    with monkeypatch.context() as patched:
        patched.setattr(files, "sha256_file", None)
        patched.setattr(torch, "isfinite", None)
        assert opened(tmp_path, directory) == first
    moved = tmp_path / "moved"
    shutil.copytree(directory, moved)
    assert opened(tmp_path, moved).fingerprint == first.fingerprint
    held = load_file(directory / "model.safetensors")
    held["model.norm.weight"][0] += 1
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})
    assert opened(tmp_path, directory).fingerprint != first.fingerprint


def test_a_note_that_is_damaged_is_not_believed(published, tmp_path):
    notes = tmp_path / "tiny" / "results" / ".read.json"
    notes.parent.mkdir(parents=True)
    first = opened(tmp_path, published / "final")
    for damaged in (b"", b"\xff", b"[]", b'{"a": 3}'):
        notes.write_bytes(damaged)
        assert opened(tmp_path, published / "final") == first


def test_an_adapter_is_merged_once_in_a_place_of_its_content(published, tmp_path):
    recipe = Recipe(
        name="tiny", run_root=str(tmp_path), model=ModelConfig(dtype="fp32"), world=WorldConfig()
    )
    model = open_model(recipe, Run.of(recipe), str(published / "adapters" / "pi1_phaseA"))
    assert not (tmp_path / "tiny").exists()
    make(model, recipe)
    expected = load_file(published / "final" / "model.safetensors")
    found = load_file(model.directory / "model.safetensors")
    assert all((found[name] == expected[name]).all() for name in expected)
    before = (model.directory / "DONE").stat().st_mtime_ns
    make(model, recipe)
    assert (model.directory / "DONE").stat().st_mtime_ns == before
    assert model.fingerprint[:8] in model.directory.name


def test_a_model_without_the_tokens_is_asked_as_a_base_is(published, tmp_path):
    model = opened(tmp_path, published / "base")
    assert model.missing_tokens[0] == "<beginabstract>" and len(model.missing_tokens) == 66
    assert model.modes == tuple(EvalConfig().base_modes)
    some = opened(tmp_path, published / "final", codebook_size=80)
    assert some.missing_tokens[0] == "<TOKEN_BM>"


@pytest.mark.timeout(60)
def test_without_network_a_hub_id_ends_quickly_and_says_what_to_do(tmp_path):
    refused(lambda: opened(tmp_path, "nobody/has-this-model"), "nobody/has-this-model", "network")


def test_a_hub_id_and_a_folder_of_it_are_found_in_the_cache(published, tmp_path, monkeypatch):
    """As the hub's own client leaves a repository there."""
    import huggingface_hub

    commit = "0" * 40
    repository = tmp_path / "hub" / "models--nobody--has-this"
    shutil.copytree(published / "final", repository / "snapshots" / commit)
    shutil.copytree(published, repository / "snapshots" / commit / "run")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    whole, folder = (
        opened(tmp_path, name) for name in ("nobody/has-this", "nobody/has-this/run/final")
    )
    assert whole.fingerprint == folder.fingerprint and whole.name != folder.name
    assert folder.directory.parts[-2:] == ("run", "final")
    refused(lambda: opened(tmp_path, "nobody/has-this/run"), "no config.json", "base, final")
    refused(lambda: opened(tmp_path, "nobody/has-this/rum"), "no directory rum")
