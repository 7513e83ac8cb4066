"""A whole network: input layer, backbone, head. Which of them is the only thing a model's name decides."""

from __future__ import annotations

from torch import Tensor, nn

from bundle.features import FeatureSchema
from training.models.backbones import BACKBONES
from training.models.config import ModelConfig
from training.models.heads import IndependentHead, LatentHead, Logits
from training.models.layers import InputLayer


class Network(nn.Module):
    """Encoded rows → logits of every task."""

    def __init__(self, config: ModelConfig, schema: FeatureSchema, tasks: int) -> None:
        """Build the network that `config` describes for the columns of `schema` and `tasks` tasks."""
        super().__init__()
        self.config = config
        self.inputs = InputLayer(schema, config.embedding_std)
        self.backbone = BACKBONES[config.backbone](config, self.inputs.width, tasks)
        head = LatentHead if config.has_latent else IndependentHead
        self.head = head(config, self.inputs.width, self.backbone.outputs, tasks)

    def forward(self, codes_BC: Tensor, values_BV: Tensor) -> Logits:
        """Return the logits of a batch of encoded rows."""
        x_BK = self.inputs(codes_BC, values_BV)
        logits: Logits = self.head(x_BK, self.backbone(x_BK))
        return logits
