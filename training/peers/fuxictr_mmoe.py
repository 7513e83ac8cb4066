"""FuxiCTR: MMOE of its own blocks, its data loader over .npz, its fit.

The published package leaves out the model zoo, from which its users take MMOE; this is a model of the same shape on the
same base class, blocks and loss. The validation that ends an epoch is taken off the clock.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel
from peer_io import TASKS, Clock, arguments, columns, write
from torch import nn

data, settings, out = arguments()
LABELS = [f"task{t}" for t in range(TASKS)]


class MMOE(MultiTaskModel):
    """Experts mixed per task by a softmax gate, one tower per task."""

    def __init__(self, features: FeatureMap, folder: str) -> None:
        super().__init__(
            features, model_id="MMOE", task=["binary_classification"] * TASKS, num_tasks=TASKS, gpu=-1, monitor="AUC",
            metrics=["AUC"], verbose=0, model_root=folder,
        )  # fmt: skip
        inputs, hidden = settings["embedding_size"] * features.num_fields, settings["expert_hidden"]
        self.embedding_layer = FeatureEmbedding(features, settings["embedding_size"])
        self.experts = nn.ModuleList([MLP_Block(inputs, hidden_units=hidden) for _ in range(settings["experts"])])
        self.gates = nn.ModuleList([nn.Linear(inputs, settings["experts"]) for _ in LABELS])
        tower = settings["tower_hidden"]
        self.towers = nn.ModuleList([MLP_Block(hidden[-1], output_dim=1, hidden_units=tower) for _ in LABELS])
        self.compile("adam", "binary_crossentropy", settings["learning_rate"])
        self.reset_parameters()
        self.validating = {"cpu_s": 0.0, "wall_s": 0.0}

    def forward(self, inputs: dict) -> dict:
        x = self.embedding_layer(self.get_inputs(inputs)).flatten(start_dim=1)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        found = {}
        for label, gate, tower, activation in zip(LABELS, self.gates, self.towers, self.output_activation, strict=True):
            mixed = (torch.softmax(gate(x), dim=1).unsqueeze(-1) * experts).sum(dim=1)
            found[f"{label}_pred"] = activation(tower(mixed))
        return found

    def eval_step(self) -> None:
        clock = Clock()
        super().eval_step()
        for name, seconds in clock.seconds().items():
            self.validating[name] += seconds


with tempfile.TemporaryDirectory() as folder:
    paths = {}
    for split in ("train", "validation", "test"):
        x, y = columns(data, split)
        paths[split] = str(Path(folder) / f"{split}.npz")
        np.savez(paths[split], **x, **dict(zip(LABELS, y.T, strict=True)))
    features = FeatureMap("made-up", folder)
    for name in x:
        features.features[name] = {"type": "categorical", "source": "", "vocab_size": settings["codes"]}
    features.labels, features.num_fields = LABELS, len(x)
    features.default_emb_dim = settings["embedding_size"]
    features.set_column_index()
    (Path(folder) / features.dataset_id).mkdir()
    model = MMOE(features, folder)
    loading = {"data_format": "npz", "num_workers": 0}
    train, validation = RankDataLoader(
        features, stage="train", train_data=paths["train"], valid_data=paths["validation"],
        batch_size=settings["batch_size"], shuffle=True, **loading,
    )  # fmt: skip
    clock = Clock()
    model.fit(train, epochs=1, validation_data=validation)
    seconds = {name: passed - model.validating[name] for name, passed in clock.seconds().items()}
    predictions = {}
    for split in ("validation", "test"):
        loader = RankDataLoader(features, stage="test", test_data=paths[split], batch_size=8192, **loading)
        found = model.predict(loader)
        predictions[split] = np.stack([found[label] for label in LABELS], axis=1)
    write(out, "fuxictr", seconds, predictions)
