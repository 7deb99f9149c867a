"""The hidden states of a model at chosen tokens of whole documents: packed bins, no padding, and no
layer above the one that is asked for.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers

from abscot.common import hardware
from abscot.common.errors import UserError
from abscot.common.gpus import on_gpu
from abscot.method.phases import NOTHING_HIDDEN, SEGMENT_X
from abscot.model import attention
from abscot.model.check import quiet
from abscot.model.cpu_linear import upcast_linears


class Document(NamedTuple):
    """tokens: int32 [n]. positions: int64, ascending: the tokens whose states are asked for."""

    tokens: np.ndarray
    positions: np.ndarray


class Bin(NamedTuple):
    """What `attention.layout_of` asks of a batch: int32 and int8 [1, T]."""

    document_id: torch.Tensor
    segment_id: torch.Tensor


def layer_number(share: float, config) -> int:
    """The layer behind which a state is read: 0 is the embeddings, then 1 to all layers."""
    return round(share * config.num_hidden_layers)


class HiddenStates:
    """The residual stream behind one layer of the model at `directory`, as the layers wrote it: the
    final norm and the LM head are never run.

    share: depth of the layer, 0 to 1. On a GPU where there is one. Raises UserError for a model
    without so many layers in a row.
    """

    def __init__(
        self,
        directory: Path,
        share: float,
        capacity_tokens: int,
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ):
        self.device = torch.device("cuda" if on_gpu() else "cpu")
        self.capacity_tokens = capacity_tokens
        kind = getattr(torch, hardware.inference_dtype(dtype))
        attention.register()
        # `auto`: the backend of the recipe is for training, in the dtype of training.
        self.backend = attention.choose("auto", self.device, kind)
        with quiet():
            lm = transformers.AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=kind,
                attn_implementation=self.backend,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        self.hidden_size, self.num_layers = lm.config.hidden_size, lm.config.num_hidden_layers
        self.decoder = _cut(lm, share, directory).to(self.device).eval()
        if self.device.type == "cpu" and kind != torch.float32 and not hardware.cpu_has_bf16():
            upcast_linears(self.decoder)

    @property
    def layer_number(self) -> int:
        return len(self.decoder.layers)

    def of(
        self,
        documents: list[Document],
        on_bin: Callable[[list[Document]], object] = lambda bin_: None,
    ) -> Iterator[np.ndarray]:
        """float32 [positions, hidden] of each document, in order. on_bin: told of the documents of
        each bin once it is computed, for what shows the progress: they come all at once.

        Documents stand in bins of at most capacity_tokens in the order in which they come, so what
        comes out depends on them alone.
        """
        for bin_ in bins(documents, self.capacity_tokens):
            found = self._of_bin(bin_)
            on_bin(bin_)
            yield from found

    def packed(self, documents: list[Document]) -> tuple[object, dict[str, torch.Tensor]]:
        """(layout, inputs) of `attention.hidden_states` for one bin, on the device."""
        lengths = torch.tensor([len(d.tokens) for d in documents])
        number = torch.arange(len(documents), dtype=torch.int32).repeat_interleave(lengths)[None]
        batch = Bin(number, torch.full_like(number, SEGMENT_X, dtype=torch.int8))
        layout = attention.layout_of(
            Bin(*(t.to(self.device) for t in batch)), self.backend, NOTHING_HIDDEN
        )
        tokens = torch.from_numpy(np.concatenate([d.tokens for d in documents]).astype(np.int64))
        position_ids = torch.cat([torch.arange(n) for n in lengths])
        inputs = {"input_ids": tokens, "position_ids": position_ids}
        return layout, {name: t[None].to(self.device) for name, t in inputs.items()}

    @torch.inference_mode()
    def _of_bin(self, documents: list[Document]) -> list[np.ndarray]:
        layout, inputs = self.packed(documents)
        hidden = attention.hidden_states(self.decoder, layout, **inputs)[0]
        starts = np.cumsum([0, *(len(d.tokens) for d in documents)])[:-1]
        wanted = [torch.from_numpy(d.positions) + s for d, s in zip(documents, starts, strict=True)]
        found = hidden[torch.cat(wanted).to(self.device)].float().cpu().numpy()
        return np.split(found, np.cumsum([len(w) for w in wanted])[:-1])


def _cut(lm, share: float, directory: Path):
    """The decoder up to the layer, without what stands behind the last one."""
    decoder = getattr(lm, "model", None)
    layers, told = getattr(decoder, "layers", None), getattr(lm.config, "num_hidden_layers", None)
    if type(told) is not int or not hasattr(decoder, "norm") or len(layers or []) < told:
        raise UserError(
            f"grounding.layer: {directory} is a {type(lm).__name__} without a row of layers and "
            "a norm behind them, so its hidden states cannot be read; use a decoder like Qwen3, "
            "or traces.sources without `grounded`"
        )
    decoder.layers = layers[: layer_number(share, lm.config)]
    decoder.norm = torch.nn.Identity()
    return decoder


def bins(documents: list[Document], capacity_tokens: int) -> Iterator[list[Document]]:
    """The documents in order, as many in a bin as fit. Raises ValueError for one that does not."""
    filled, tokens = [], 0
    for document in documents:
        size = len(document.tokens)
        if size > capacity_tokens:
            raise ValueError(f"a document of {size} tokens in bins of {capacity_tokens}")
        if filled and tokens + size > capacity_tokens:
            yield filled
            filled, tokens = [], 0
        filled.append(document)
        tokens += size
    if filled:
        yield filled
