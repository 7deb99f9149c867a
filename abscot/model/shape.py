"""The numbers of a decoder's config.json that size and speed depend on."""

from dataclasses import dataclass
from pathlib import Path

from abscot.common.errors import UserError
from abscot.model.weights import read_json, said
from abscot.recipe.schema_train import LoraConfig

GB = 1e9
BF16_BYTES, FP32_BYTES = 2, 4  # bytes


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a decoder's config.json that size and speed depend on."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool

    @classmethod
    def of_directory(cls, directory: Path) -> "ModelShape":
        """Raises UserError where there is no config.json of a known kind."""
        config = read_json(Path(directory) / "config.json", str(directory))

        def number(key: str, default: int | None = None) -> int:
            return _number(config, key, directory, default)

        hidden, heads = number("hidden_size"), number("num_attention_heads")
        return cls(
            hidden,
            number("intermediate_size"),
            number("num_hidden_layers"),
            heads,
            number("num_key_value_heads", heads),
            number("head_dim", hidden // heads),
            number("vocab_size"),
            config.get("tie_word_embeddings") is True,
        )

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Of one layer, by the names that LoRA knows them by: inputs and outputs."""
        query, key = self.query_width, self.key_width
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters_per_layer(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.linear_layers.values())

    @property
    def parameters(self) -> int:
        norms = self.layers * (2 * self.hidden + 2 * self.head_dim) + self.hidden
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * self.linear_parameters_per_layer + norms + tables

    @property
    def pair_cost(self) -> float:
        """FLOPs of one attended (query, key) pair over one token's linear layers, head left out."""
        return 2 * self.heads * self.head_dim / self.linear_parameters_per_layer

    def forward_flops(self, tokens: float, pairs: float) -> float:
        """2 per weight and token, 4 per head dimension and pair (scores, and their product with the
        values).
        """
        return (
            2 * self.layers * self.linear_parameters_per_layer * (tokens + pairs * self.pair_cost)
        )

    def training_flops(
        self, tokens: float, pairs: float, supervised: float, frozen: bool = False
    ) -> float:
        """Forward and backward (twice the forward). As in MFU, recomputation is not counted.

        Frozen weights (LoRA) need no gradient of their own; what the adapters need is left out.
        """
        head = 2 * self.hidden * self.vocab * supervised
        weight_gradients = self.forward_flops(tokens, 0) + head
        return 3 * (self.forward_flops(tokens, pairs) + head) - (weight_gradients if frozen else 0)

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * BF16_BYTES

    def lora_parameters(self, lora: LoraConfig, new_rows: int) -> int:
        """Trainable parameters: r (in + out) per target layer, and the new rows or the
        whole tables.
        """
        rows = new_rows if lora.embeddings == "new_rows" else self.vocab
        adapters = lora.r * sum(self.adapted_widths(lora)) * self.layers
        return adapters + rows * self.hidden * (1 if self.tied else 2)

    def adapted_widths(self, lora: LoraConfig) -> tuple[int, int]:
        """(inputs, outputs) of a layer's linear layers that get an adapter, added up."""
        layers = self.linear_layers
        found = [layers[name] for name in lora.target_modules if name in layers]
        return sum(width for width, _ in found), sum(width for _, width in found)


QWEN3 = {  # config.json of Qwen/Qwen3-*, for planning before anything is downloaded
    "0.6B": ModelShape(1024, 3072, 28, 16, 8, 128, 151_936, True),
    "1.7B": ModelShape(2048, 6144, 28, 16, 8, 128, 151_936, True),
    "4B": ModelShape(2560, 9728, 36, 32, 8, 128, 151_936, True),
    "8B": ModelShape(4096, 12_288, 36, 32, 8, 128, 151_936, False),
    "14B": ModelShape(5120, 17_408, 40, 40, 8, 128, 151_936, False),
    "32B": ModelShape(5120, 25_600, 64, 64, 8, 128, 151_936, False),
}


def max_position(model: Path) -> int:
    """The window of a model, in tokens. Raises UserError where its config.json does not say."""
    config = read_json(Path(model) / "config.json", str(model))
    return _number(config, "max_position_embeddings", model)


def _number(config: dict, key: str, directory: Path, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        raise UserError(
            f"{directory}: config.json: {key}: expected a number above 0, found "
            f"{said(repr(value), 60)}; give model.base the directory of a decoder model"
        )
    return value
