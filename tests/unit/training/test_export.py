"""What goes along with an exported model."""

import transformers

from abscot.common import files
from abscot.model.handover import ExportMeta, Probe
from abscot.training.export import export
from kit.tiny_run import make_model, tiny_model, tiny_tokenizer


def test_a_codebook_goes_along_and_no_loader_minds(tmp_path):
    make_model(tmp_path / "base", tiny_tokenizer(), seed=0)
    with files.publish(tmp_path / "codebook") as temp:
        for name in ("codebook.json", "codebook.safetensors"):
            (temp / name).write_bytes(b"not looked at")
    meta = ExportMeta(
        tag="pi1_phaseB",
        round=1,
        phase="B",
        start="0",
        step=1,
        epoch=1,
        tokens=1,
        plan_hash="0",
        world_size=1,
        probe=Probe(tokens=[1, 2], surprisals=[0.5]),
    )
    source, target = tmp_path / "base", tmp_path / "round1"
    export(tiny_model(1), source, target, None, meta, tmp_path / "codebook")
    listed = files.Done.of_directory(target).files
    assert {"codebook/codebook.json", "codebook/codebook.safetensors"} <= listed.keys()
    assert files.unlisted(target) == [] and not (target / "codebook" / files.DONE).exists()
    files.refuse_unlisted(target)
    transformers.AutoModelForCausalLM.from_pretrained(target, use_safetensors=True)
    export(tiny_model(1), target, tmp_path / "round2", None, meta)
    assert not (tmp_path / "round2" / "codebook").exists()
