"""torch-rechub: its MMOE, its DataGenerator, one epoch of its MTLTrainer."""

import tempfile

from peer_io import TASKS, Clock, arguments, columns, write
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import MMOE
from torch_rechub.trainers import MTLTrainer
from torch_rechub.utils.data import DataGenerator, DataLoader, PredictDataset

data, settings, out = arguments()
(x, y), (x_validation, y_validation), (x_test, y_test) = (columns(data, s) for s in ("train", "validation", "test"))
kinds = ["classification"] * TASKS
features = [SparseFeature(name, vocab_size=settings["codes"], embed_dim=settings["embedding_size"]) for name in x]
model = MMOE(
    features,
    kinds,
    n_expert=settings["experts"],
    expert_params={"dims": settings["expert_hidden"]},
    tower_params_list=[{"dims": settings["tower_hidden"]}] * TASKS,
)
loaders = DataGenerator(x, y).generate_dataloader(
    x_val=x_validation, y_val=y_validation, x_test=x_test, y_test=y_test, batch_size=settings["batch_size"]
)
with tempfile.TemporaryDirectory() as folder:
    adam = {"lr": settings["learning_rate"]}
    trainer = MTLTrainer(model, kinds, optimizer_params=adam, n_epoch=1, model_path=folder)
    clock = Clock()
    trainer.train_one_epoch(loaders[0])
    seconds = clock.seconds()
splits = {"validation": x_validation, "test": x_test}
write(
    out,
    "torch-rechub",
    seconds,
    {s: trainer.predict(model, DataLoader(PredictDataset(v), batch_size=8192)) for s, v in splits.items()},
)
