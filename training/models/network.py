"""A whole network: input layer, backbone, head. Which of them is the only thing a model's name decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from bundle.features import FeatureSchema
from training.errors import ConfigInvalid
from training.models.backbones import BACKBONES, read
from training.models.config import ModelConfig
from training.models.heads import IndependentHead, LatentHead, Logits, Wide
from training.models.inputs import InputLayer
from training.models.structure import TaskStructure, unrelated


class Network(nn.Module):
    """Encoded rows → logits of every task."""

    def __init__(
        self,
        config: ModelConfig,
        schema: FeatureSchema,
        tasks: int,
        structure: TaskStructure | None = None,
        own_rows: Callable[[int], slice] | None = None,
    ) -> None:
        """Build the network that `config` describes for the columns of `schema` and `tasks` tasks.

        `structure` relates the tasks; without it they are unrelated. `own_rows` gives the rows that are kept of an
        embedding table of so many; without it all are.

        Raises:
            ConfigInvalid: habit towers without a user or context feature to read.
        """
        super().__init__()
        self.config = config
        self.structure = None if structure == unrelated(tasks) else structure
        self.inputs = InputLayer(schema, config.embedding_std, own_rows)
        self.backbone_inputs = self.inputs.parts[0].width if config.habit_towers else self.inputs.width
        if not self.backbone_inputs:
            raise ConfigInvalid("habit_towers", found="no user or context feature", expected="at least one")
        self.backbone: Any = BACKBONES[config.backbone](config, self.backbone_inputs, tasks)
        head = LatentHead if config.has_latent else IndependentHead
        self.head = head(config, self.inputs.width, self.backbone.outputs, tasks, self.structure)
        self.wide = Wide(self.backbone_inputs, tasks, head.LOGITS) if config.wide else None

    def forward(self, codes_BC: Tensor, values_BV: Tensor) -> Logits:
        """Return the logits of a batch of encoded rows."""
        x_BK = self.inputs(codes_BC, values_BV)
        x_backbone = x_BK[:, : self.backbone_inputs]
        wide_LBT = None if self.wide is None else self.wide(x_backbone)
        logits: Logits
        if self.training and isinstance(self.head, LatentHead) and self.backbone_inputs == self.inputs.width:
            *found, latent_1BH = read(x_BK, [*self.backbone.readers, self.head.latent], jointly=True)
            logits = self.head(x_BK, self.backbone.after_readers(found), wide_LBT, latent_1BH)
        else:
            logits = self.head(x_BK, self.backbone(x_backbone), wide_LBT)
        return logits
