"""DeepCTR-Torch: its MMOE and its fit, silent (with a progress bar it computes metrics batch by batch)."""

import torch
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models import MMOE
from peer_io import TASKS, Clock, arguments, columns, write

data, settings, out = arguments()
x, y = columns(data, "train")
size = settings["embedding_size"]
model = MMOE(
    [SparseFeat(name, vocabulary_size=settings["codes"], embedding_dim=size) for name in x],
    num_experts=settings["experts"],
    expert_dnn_hidden_units=settings["expert_hidden"],
    gate_dnn_hidden_units=(),
    tower_dnn_hidden_units=settings["tower_hidden"],
    l2_reg_linear=0,
    l2_reg_embedding=0,
    init_std=0.05,
    task_types=["binary"] * TASKS,
    task_names=[f"task{t}" for t in range(TASKS)],
    seed=settings["seed"],
)
adam = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
model.compile(adam, loss=["binary_crossentropy"] * TASKS, metrics=[])
clock = Clock()
model.fit(x, y, batch_size=settings["batch_size"], epochs=1, verbose=0)
seconds = clock.seconds()
predictions = {split: model.predict(columns(data, split)[0], batch_size=8192) for split in ("validation", "test")}
write(out, "deepctr-torch", seconds, predictions)
