"""A recipe on so many ranks: the parameters it trains, how they are spread, their memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from abscot.common import hardware
from abscot.common.hardware import GPUS
from abscot.method.vocab import abstract_tokens
from abscot.model.shape import GB, ModelShape
from abscot.pipeline.estimate import Sharding, cpu_memory_bytes, memory_bytes
from abscot.recipe.deepspeed_file import read_deepspeed_file
from abscot.recipe.load import ROOT
from abscot.recipe.schema import LoraConfig, Recipe

USABLE = 0.95  # share of a GPU's memory that a process can have


@dataclass(frozen=True)
class Sizing:
    """bin_tokens: of the largest bin. Raises UserError for a DeepSpeed file that cannot be."""

    recipe: Recipe
    shape: ModelShape
    world_size: int
    bin_tokens: int

    @property
    def sharding(self) -> Sharding:
        """The recipe's own."""
        return Sharding.of_config(read_deepspeed_file(ROOT / self.recipe.train.deepspeed))

    @property
    def trainable(self) -> int:
        """Parameters that the recipe trains."""
        return self.adapter_parameters if self.recipe.lora else self.shape.parameters

    @property
    def adapter_parameters(self) -> int:
        """Parameters that LoRA trains, as in the recipe or by default."""
        new_rows = len(abstract_tokens(self.recipe.codebook_size))
        return self.shape.lora_parameters(self.recipe.lora or LoraConfig(), new_rows)

    def memory(self, sharding: Sharding, **changes) -> dict[str, float]:
        """Peak bytes of one GPU by part; changes: keywords of memory_bytes, or world_size."""
        settings = {**self._settings(), **changes}
        world_size = settings.pop("world_size", self.world_size)
        return memory_bytes(self.shape, sharding, world_size, self.bin_tokens, **settings)

    def cpu_rank_memory(self) -> dict[str, float]:
        """Peak bytes of one rank where the recipe trains on CPUs, by part."""
        return cpu_memory_bytes(
            self.shape,
            self.sharding,
            self.world_size,
            self.bin_tokens,
            **self._settings(),
            bf16_in_hardware=hardware.cpu_has_bf16(),
        )

    def _settings(self) -> dict:
        return {
            "checkpointing": self.recipe.model.gradient_checkpointing,
            "chunk_tokens": self.recipe.model.loss_chunk_tokens,
            "trainable": self.trainable,
            "optimizer": self.recipe.optimizer.name,
        }

    def settings(self) -> Iterator[dict]:
        """The recipe's own setting first, then the others: what each takes, where it fits."""
        lora, adapters = self.recipe.lora or LoraConfig(), self.adapter_parameters
        every = self.shape.parameters
        options = [(self.sharding, self.trainable, "the recipe: ")]
        options += [(Sharding(stage), every, "") for stage in (1, 2, 3)]
        options += [(Sharding(3, offload_optimizer=True), every, ""), (Sharding(3), adapters, "")]
        for sharding, trainable, mark in options:
            parts = self.memory(sharding, trainable=trainable)
            fits = {gpu.name: parts["total"] <= USABLE * gpu.memory_gb * GB for gpu in GPUS}
            kind = f"LoRA r={lora.r}, " if trainable != every else ""
            yield {"setting": f"{mark}{kind}{sharding.name}", "bytes": parts, "fits": fits}
