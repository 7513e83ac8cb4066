"""Nested, mirrored and habit-towered models against slow loops over states, tasks and label vectors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from bundle.features import FeatureSchema
from cli import main
from training import losses
from training.errors import ConfigInvalid, InitialisationImpossible
from training.models.config import ModelConfig
from training.models.heads import LatentLogits, TaskLogits
from training.models.initialise import initialise
from training.models.network import Network
from training.models.structure import NO_PARENT, TaskStructure, task_structure
from training.run import read_run

NAMES = ("share", "click", "like", "hate")
CHAIN = TaskStructure((2, NO_PARENT, 1, NO_PARENT), (False, False, False, True))  # click ⊃ like ⊃ share; hate mirrored
ALPHA = torch.tensor([0.01, 0.2, 0.05, 0.03], dtype=torch.float64)
FEASIBLE = [y for y in itertools.product((0, 1), repeat=4) if y[1] >= y[2] >= y[0]]

SCHEMA = FeatureSchema.model_validate(
    {
        "features": [
            {"name": "age", "side": "user", "kind": "numeric", "embedding_size": 4,
             "encoding": {"type": "quantile", "buckets": 3, "edges": [1.0, 2.0]}},
            {"name": "id", "side": "item", "kind": "categorical", "value_type": "integer", "embedding_size": 4,
             "encoding": {"type": "hash", "buckets": 50}},
        ]
    }
)  # fmt: skip


def small(name: str, **changes) -> ModelConfig:
    sizes = {"experts": 2, "expert_hidden": (6, 5), "latent_hidden": (4,), "tower_hidden": (4,)}
    return ModelConfig(name=name, **(sizes | changes))


def logits(seed: int, scale: float = 1.5) -> LatentLogits:
    random = torch.Generator().manual_seed(seed)
    h, f, g = (
        (torch.randn(shape, generator=random, dtype=torch.float64) * scale).requires_grad_()
        for shape in ((5,), (5, 4), (5, 4))
    )
    return LatentLogits(h, f, g, ALPHA, CHAIN)


def states(x: LatentLogits, row: int) -> tuple[float, list[float], list[float]]:
    """Return u and, in both states, each task's probability given its parent, by definition."""
    u, *sides = (torch.sigmoid(side[row]).detach().numpy() for side in (x.h_B, x.f_BT, x.g_BT))
    a = [sides[0][0], sides[0][1], sides[0][2], 0.03 * sides[0][3]]
    b = [0.01 / 0.05 * sides[1][0], 0.2 * sides[1][1], 0.05 / 0.2 * sides[1][2], sides[1][3]]
    return float(u), a, b


def product(given: list[float], y: tuple[int, ...]) -> float:
    """Return the probability of a feasible label vector in one state."""
    result = 1.0
    for task, parent in enumerate(CHAIN.parents):
        if parent == NO_PARENT or y[parent]:
            result *= given[task] if y[task] else 1 - given[task]
    return result


def test_chained_probabilities_are_products_down_the_chain_and_stay_below_their_bounds():
    x = logits(1)
    out = x.probabilities()
    log_p, log_not_p = x.log_p()
    for row in range(5):
        u, a, b = states(x, row)
        for task, above in enumerate([(1, 2), (), (1,), ()]):
            a_t = math.prod(a[t] for t in (*above, task))
            b_t = math.prod(b[t] for t in (*above, task))
            assert out.p_BT[row, task].item() == pytest.approx(a_t * u + b_t * (1 - u), rel=1e-9)
            assert out.p_joint_BT[row, task].item() == pytest.approx(a_t * u, rel=1e-9)
            assert (a_t if task == 3 else b_t) < ALPHA[task]
    torch.testing.assert_close(log_p.exp(), out.p_BT)
    torch.testing.assert_close(log_p.exp() + log_not_p.exp(), torch.ones_like(log_p))


def test_the_joint_loss_of_a_chain_is_a_loop_over_states_and_possible_tasks():
    x = logits(2)
    y = [FEASIBLE[index] for index in (0, 3, 5, 7, 6)]
    expected = 0.0
    for row in range(5):
        u, a, b = states(x, row)
        expected -= math.log(u * product(a, y[row]) + (1 - u) * product(b, y[row])) / 5
    found = losses.joint(x, torch.tensor(y, dtype=torch.float64))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_joint_likelihood_sums_to_one_over_the_label_vectors_that_can_be():
    x = logits(3)
    one = LatentLogits(x.h_B[:1], x.f_BT[:1], x.g_BT[:1], ALPHA, CHAIN)
    total = sum(math.exp(-losses.joint(one, torch.tensor([y], dtype=torch.float64)).item()) for y in FEASIBLE)
    assert total == pytest.approx(1, abs=1e-9)


def test_without_the_latent_state_a_chain_is_a_product_of_sigmoids():
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    s = torch.sigmoid(z)
    expected = torch.stack([s[:, 0] * s[:, 1] * s[:, 2], s[:, 1], s[:, 1] * s[:, 2], s[:, 3]], 1)
    x = TaskLogits(z, CHAIN)
    torch.testing.assert_close(x.probabilities().p_BT, expected)
    torch.testing.assert_close(x.log_p()[1].exp(), 1 - expected)


@pytest.mark.parametrize("loss", [losses.joint, losses.marginal])
def test_gradients_of_chains_and_mirrored_tasks_are_those_of_finite_differences(loss):
    x = logits(5)
    y = torch.tensor([FEASIBLE[index] for index in (0, 1, 4, 7, 5)], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, f, g: loss(LatentLogits(h, f, g, ALPHA, CHAIN), y), (*vars(x).values(),)[:3]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [40.0, -40.0])
def test_losses_and_gradients_stay_finite_at_extreme_logits(dtype, scale):
    h, f, g = (torch.full(shape, scale, dtype=dtype, requires_grad=True) for shape in ((8,), (8, 4), (8, 4)))
    y = torch.tensor(FEASIBLE[:8], dtype=dtype)
    x = LatentLogits(h, f, g, ALPHA.to(dtype), CHAIN)
    (losses.joint(x, y) + losses.marginal(x, y)).backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (h, f, g))


def test_a_complaint_lowers_p_up_and_its_absence_raises_it():
    structure = TaskStructure((NO_PARENT,), (True,))
    gradients = []
    for y in (1.0, 0.0):
        h = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        side = torch.zeros(1, 1, dtype=torch.float64)
        losses.marginal(LatentLogits(h, side, side, ALPHA[3:], structure), torch.tensor([[y]])).backward()
        gradients.append(h.grad.item())
    assert gradients[0] > 0 > gradients[1]


@pytest.mark.parametrize("name", ["esmm", "mmoe", "dlen-mmoe", "dlen-ple"])
def test_chains_and_mirrored_tasks_start_at_their_base_rates(name):
    config = small(name, within={"share": "like", "like": "click"}, mirror_negative=True)
    structure = task_structure(config, NAMES, ["positive"] * 3 + ["negative"])
    assert structure == (CHAIN if config.has_latent else TaskStructure(CHAIN.parents, (False,) * 4))
    torch.manual_seed(5)
    network = Network(config, SCHEMA, 4, structure).eval()
    rates = np.array([0.002, 0.4, 0.03, 0.004])
    initialise(network, rates, NAMES)
    codes = torch.tensor([[1, 5], [2, 40], [3, 7]], dtype=torch.int32)
    p = network(codes, torch.zeros(3, 0)).probabilities().p_BT.mean(0)
    np.testing.assert_allclose(p.detach().numpy(), rates, rtol=0.3)


def test_a_prior_at_which_no_b_below_one_gives_the_rate_of_a_mirrored_task_is_refused():
    config = small("dlen-mmoe", mirror_negative=True, prior_up=0.95)
    network = Network(config, SCHEMA, 1, task_structure(config, ["hate"], ["negative"]))
    with pytest.raises(InitialisationImpossible, match="'hate' of base rate 0.4000"):
        initialise(network, np.array([0.4]), ("hate",))


@pytest.mark.parametrize(
    ("within", "message"),
    [
        ({"like": "view"}, r"within\.like: got view"),
        ({"like": "like"}, r"within\.like: got like"),
        ({"like": "click", "click": "like"}, "a circle"),
        ({"hate": "click"}, "hate: got a mirrored task"),
        ({"click": "hate"}, "hate: got a mirrored task"),
    ],
)
def test_relations_that_cannot_be_are_refused_by_name(within, message):
    with pytest.raises(ConfigInvalid, match=message):
        task_structure(small("dlen-mmoe", within=within, mirror_negative=True), NAMES, ["positive"] * 3 + ["negative"])


def test_habit_towers_do_not_see_the_item_and_p_up_does():
    torch.manual_seed(6)
    network = Network(small("dlen-mmoe", habit_towers=True, wide=True), SCHEMA, 2).eval()
    torch.nn.init.normal_(network.wide.weight)
    out = network(torch.tensor([[1, 5], [1, 40], [2, 5]], dtype=torch.int32), torch.zeros(3, 0))
    assert torch.equal(out.f_BT[0], out.f_BT[1]) and torch.equal(out.g_BT[0], out.g_BT[1])
    assert out.h_B[0] != out.h_B[1]
    assert not torch.equal(out.f_BT[0], out.f_BT[2])


WITHIN = "within={like: click, follow: click, comment: click, forward: click}"


@pytest.mark.parametrize("name", ["esmm", "dlen-mmoe"])
def test_a_chain_is_trained_and_its_tasks_never_exceed_the_one_they_lie_within(nested, tmp_path, name):
    sizes = ["expert_hidden=[8]", "latent_hidden=[8]", "experts=2", "epochs=1", "batch_size=512", WITHIN]
    settings = [argument for size in sizes for argument in ("--set", size)]
    assert main(["train", "--data", str(nested), "--model", name, "--out", str(tmp_path / "run"), *settings]) == 0
    network = read_run(tmp_path / "run").trained_network()
    codes, values = (np.load(nested / "test" / f"{part}.npy")[:500] for part in ("codes", "values"))
    p = network(torch.from_numpy(codes), torch.from_numpy(values)).probabilities().p_BT
    assert (p[:, 1:] < p[:, :1]).all()


def test_labels_that_are_not_nested_are_refused_with_their_number(prepared, tmp_path, capsys):
    command = ["train", "--data", str(prepared), "--model", "esmm", "--out", str(tmp_path / "run")]
    assert main([*command, "--set", "within={like: click}"]) == 2
    labels = np.load(prepared / "train" / "labels.npy")
    alone = int((labels[:, 1] > labels[:, 0]).sum())
    assert f"got {alone} of {labels[:, 1].sum()} like rows without it" in capsys.readouterr().err
