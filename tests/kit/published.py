"""A small checkpoint as the public reproduction publishes them: `base/` (the plain model that it
started from), `final/` and `adapters/`; made by transformers and peft alone.
"""

from pathlib import Path

import torch

from abscot.method.vocab import BEGIN, END, codebook_tokens
from kit.tiny_run import plain_tokenizer, tiny_model

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def make_published(root: Path, dtype=torch.float32) -> Path:
    """final/: begin token first, tables shrunk to the tokenizer and untied, adapter merged; no DONE
    anywhere. adapters/pi1_phaseA: that adapter, with both tables whole. Returns final/.
    """
    import peft
    from transformers import AutoModelForCausalLM

    tokenizer = plain_tokenizer()
    tiny_model(seed=3).to(dtype).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    tokens = [BEGIN, END, *codebook_tokens()]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    lm = AutoModelForCausalLM.from_pretrained(root / "base", dtype=dtype)
    untie(lm, len(tokenizer))
    whole = {"modules_to_save": ["embed_tokens", "lm_head"]}
    config = peft.LoraConfig(task_type="CAUSAL_LM", **LORA, **whole)
    adapted = peft.get_peft_model(lm, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    for directory in ("final", "adapters/pi1_phaseA"):
        tokenizer.save_pretrained(root / directory)
    adapted.save_pretrained(root / "adapters" / "pi1_phaseA")
    adapted.merge_and_unload().save_pretrained(root / "final")
    return root / "final"


def untie(lm, rows: int) -> None:
    """Gives a tied model of more rows a table and a head of `rows` rows each."""
    lm.resize_token_embeddings(rows, mean_resizing=False)
    lm.config.tie_word_embeddings = False
    lm.lm_head.weight = torch.nn.Parameter(lm.model.embed_tokens.weight.detach().clone())
