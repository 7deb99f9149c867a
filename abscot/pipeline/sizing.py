"""A recipe on so many ranks: what it trains, how that is spread, its memory and its speed."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from abscot.common import hardware
from abscot.common.hardware import GPUS, Gpu
from abscot.method.vocab import abstract_tokens
from abscot.model.shape import GB, ModelShape
from abscot.pipeline.estimate import Sharding, cpu_memory_bytes, memory_bytes
from abscot.pipeline.speed import Levers, Speed
from abscot.recipe.deepspeed_file import read_deepspeed_file
from abscot.recipe.load import ROOT
from abscot.recipe.schema import Recipe
from abscot.recipe.schema_train import LoraConfig

USABLE = 0.95  # share of a GPU's memory that a process can have


@dataclass(frozen=True)
class Setting:
    """A way to train. lora: None where all parameters are trained."""

    name: str
    sharding: Sharding
    lora: LoraConfig | None


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
        return self.trained_by(self.recipe.lora)

    def trained_by(self, lora: LoraConfig | None) -> int:
        """Parameters that `lora` trains; None: all."""
        if lora is None:
            return self.shape.parameters
        return self.shape.lora_parameters(lora, len(abstract_tokens(self.recipe.codebook_size)))

    def speed(self, gpu: Gpu, mfu: float | None = None) -> Speed:
        """The recipe's own, with the kernels of this environment."""
        return Speed(
            self.shape,
            gpu,
            Levers.of(self.recipe),
            self.recipe.model.gradient_checkpointing,
            self.sharding,
            self.world_size,
            self.trainable,
            self.recipe.lora,
            mfu,
        )

    def in_setting(self, setting: Setting, speed: Speed) -> Speed:
        return dataclasses.replace(
            speed,
            sharding=setting.sharding,
            lora=setting.lora,
            trained=self.trained_by(setting.lora),
        )

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
            "keep_attention": self.recipe.model.keep_attention,
            "chunk_tokens": self.recipe.model.loss_chunk_tokens,
            "trainable": self.trainable,
            "optimizer": self.recipe.optimizer.name,
        }

    @property
    def settings(self) -> Iterator[Setting]:
        """The recipe's own first, then the others."""
        own, lora = self.recipe.lora, self.recipe.lora or LoraConfig()
        options = [("the recipe: ", self.sharding, own)]
        options += [("", Sharding(stage), None) for stage in (1, 2, 3)]
        options += [("", Sharding(3, offload_optimizer=True), None)]
        options += [("", Sharding(stage), lora) for stage in (1, 3)]
        for mark, sharding, adapters in options:
            kind = f"LoRA r={adapters.r}, " if adapters else ""
            yield Setting(f"{mark}{kind}{sharding.name}", sharding, adapters)

    def needs(self, setting: Setting) -> dict:
        """What it takes of a GPU, and on which kinds it fits."""
        parts = self.memory(setting.sharding, trainable=self.trained_by(setting.lora))
        fits = {gpu.name: parts["total"] <= USABLE * gpu.memory_gb * GB for gpu in GPUS}
        return {"setting": setting.name, "bytes": parts, "fits": fits}
