"""Networks against loops over features, experts and tasks; initialisation against the base rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bundle.features import FeatureSchema
from training.errors import InitialisationImpossible
from training.models.backbones import MMOE, PLE, SharedBottom
from training.models.config import MODEL_NAMES, ModelConfig
from training.models.heads import LatentHead
from training.models.initialise import initialise
from training.models.inputs import InputLayer
from training.models.layers import BatchedMLP, Layer, column_products, joint_layers, side_by_side
from training.models.network import Network

SCHEMA = FeatureSchema.model_validate(
    {
        "features": [
            {"name": "id", "side": "item", "kind": "categorical", "value_type": "integer", "embedding_size": 4,
             "encoding": {"type": "hash", "buckets": 50}},
            {"name": "tags", "side": "item", "kind": "categorical_list", "value_type": "string", "embedding_size": 3,
             "max_length": 3, "encoding": {"type": "hash", "buckets": 9}},
            {"name": "age", "side": "user", "kind": "numeric", "embedding_size": 4,
             "encoding": {"type": "quantile", "buckets": 3, "edges": [1.0, 2.0]}},
            {"name": "height", "side": "user", "kind": "numeric",
             "encoding": {"type": "standardise", "mean": 0.0, "deviation": 1.0}},
            {"name": "hour", "side": "context", "kind": "categorical", "value_type": "integer", "embedding_size": 2,
             "encoding": {"type": "vocabulary", "values": [1, 2, 3]}},
            {"name": "length", "side": "item", "kind": "numeric",
             "encoding": {"type": "standardise", "mean": 0.0, "deviation": 1.0}},
        ]
    }
)  # fmt: skip
# code columns: age, hour | id, tags × 3 — value columns: height, its flag | length, its flag
CODES = np.array([[0, 2, 7, 5, 4, 0], [3, 1, 51, 0, 0, 0], [4, 4, 2, 10, 2, 3]], dtype=np.int32)
VALUES = np.array([[0.5, 0, 1.5, 0], [0, 1, -2, 0], [1, 0, 0, 1]], dtype=np.float32)


def small(name: str = "dlen-mmoe", **changes) -> ModelConfig:
    sizes = {"experts": 3, "expert_hidden": (6, 5), "latent_hidden": (4, 3), "tower_hidden": (4,)}
    return ModelConfig(name=name, shared_experts=2, task_experts=2, **(sizes | changes))


def test_input_layer_is_a_loop_over_features():
    torch.manual_seed(0)
    layer = InputLayer(SCHEMA, embedding_std=1.0)
    found = layer(torch.from_numpy(CODES), torch.from_numpy(VALUES)).detach().numpy()
    tables = {size: table.detach().numpy() for size, table in layer.tables.items()}
    age, hour = tables["4"][:5], tables["2"]
    ids, tags = tables["4"][5:], tables["3"]
    assert (len(ids), len(tags)) == (52, 11)
    for row, codes in enumerate(CODES):
        given = [tags[code] for code in codes[3:] if code != 0]
        mean = np.mean(given, axis=0) if given else np.zeros(3)
        expected = [age[codes[0]], hour[codes[1]], VALUES[row, :2], ids[codes[2]], mean, VALUES[row, 2:]]
        np.testing.assert_allclose(found[row], np.concatenate(expected), rtol=1e-6)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_wide_layer_starts_at_zero_and_adds_a_sum_over_inputs_to_each_logit(name):
    made = []
    for wide in (False, True):
        torch.manual_seed(3)
        made.append(Network(small(name, wide=wide), SCHEMA, 3).eval())
    without, network = made
    rows = torch.from_numpy(CODES), torch.from_numpy(VALUES)
    before = without(*rows)
    assert torch.equal(network(*rows).probabilities().p_BT, before.probabilities().p_BT)
    torch.nn.init.normal_(network.wide.weight)
    after, x, weight = network(*rows), network.inputs(*rows).detach().numpy(), network.wide.weight.detach().numpy()
    logits = ("f_BT", "g_BT") if name.startswith("dlen-") else ("z_BT",)
    assert len(weight) == len(logits)
    for number, attribute in enumerate(logits):
        moved = (getattr(after, attribute) - getattr(before, attribute)).detach().numpy()
        expected = [[sum(x[b, k] * weight[number, k, t] for k in range(len(x[b]))) for t in range(3)] for b in range(3)]
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)


def test_the_wide_layer_is_as_exact_under_autocast():
    torch.manual_seed(4)
    network = Network(small(wide=True), SCHEMA, 3).eval()
    torch.nn.init.normal_(network.wide.weight)
    x = torch.randn(20, network.inputs.width)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        found = network.wide(x)
    assert torch.equal(found, network.wide(x)) and found.dtype == torch.float32


def mlp(layers: BatchedMLP, network: int, x: np.ndarray) -> np.ndarray:
    """Return one MLP's output [B, H] in numpy."""
    for weight, bias in zip(layers.weights, layers.biases, strict=True):
        x = np.maximum(x @ weight[network].detach().numpy() + bias[network].detach().numpy(), 0)
    return x


def softmax(x: np.ndarray) -> np.ndarray:
    shifted = np.exp(x - x.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def gate(gates, index: int, x: np.ndarray) -> np.ndarray:
    return softmax(x @ gates.weight[index].detach().numpy() + gates.bias[index].detach().numpy())


def mixed(shares: np.ndarray, experts: list[np.ndarray]) -> np.ndarray:
    return sum(shares[:, e : e + 1] * expert for e, expert in enumerate(experts))


def gradients(network: Network | InputLayer, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each parameter's gradient of a sum in which every element has a weight of its own."""
    network.zero_grad()
    torch.manual_seed(1)
    (value * torch.randn(value.shape, dtype=value.dtype)).sum().backward()
    return {
        name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if name != "esmm"])
def test_networks_in_training_give_what_they_give_otherwise_and_its_gradients(name, wide):
    torch.manual_seed(0)
    network = Network(small(name, levels=2, wide=wide), SCHEMA, 3).double()
    codes, values = torch.from_numpy(CODES), torch.from_numpy(VALUES).double()
    logits = [network.train(training)(codes, values).log_p()[0] for training in (True, False)]
    torch.testing.assert_close(*logits, rtol=1e-12, atol=1e-12)
    found, wanted = (gradients(network, each) for each in logits)
    assert found.keys() == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-12, msg=parameter)


def random_layers(groups, **options):
    return [
        Layer(
            torch.randn(e, 6, h, requires_grad=True, **options),
            torch.randn(e, 1, h, requires_grad=True, **options),
            relu,
        )
        for e, h, relu in groups
    ]


def one_by_one(x, layers):
    found = [side_by_side(x, layer.weight, layer.bias) for layer in layers]
    return [torch.relu(each) if layer.is_relu else each for each, layer in zip(found, layers, strict=True)]


@pytest.mark.parametrize(
    "groups",
    [
        [(1, 1, False)],
        [(3, 5, True), (2, 7, False)],
        [(2, 8, True)],
        [(1, 3, False), (4, 8, True), (1, 1, True)],
    ],
)
def test_layers_of_one_input_as_one_product_are_those_layers(groups):
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    layers = random_layers(groups, dtype=torch.double)
    for found, layer in zip(joint_layers(x, layers), layers, strict=True):
        wanted = torch.einsum("bk,ekh->ebh", x, layer.weight) + layer.bias
        torch.testing.assert_close(found, wanted.clamp(min=0) if layer.is_relu else wanted)
    flat = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]

    def of(x: torch.Tensor, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = zip(flat[::2], flat[1::2], groups, strict=True)
        return tuple(joint_layers(x, [Layer(weight, bias, relu) for weight, bias, (_, _, relu) in pairs]))

    assert torch.autograd.gradcheck(of, (x, *flat))


def test_under_autocast_one_product_is_as_near_as_layers_of_their_own():
    torch.manual_seed(0)
    x = torch.randn(64, 6, requires_grad=True)
    layers = random_layers([(3, 5, True), (2, 7, False)])
    inputs = [x, *(tensor for layer in layers for tensor in (layer.weight, layer.bias))]
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = joint_layers(x, layers), one_by_one(x, layers)
    exact = one_by_one(x, layers)
    of_found, of_exact = (
        torch.autograd.grad(sum(each.float().square().mean() for each in given), inputs, retain_graph=True)
        for given in (found, exact)
    )
    for given, other in zip(found, wanted, strict=True):
        assert given.dtype == torch.bfloat16
        torch.testing.assert_close(given, other)
    for given, other in zip(of_found, of_exact, strict=True):
        assert given.dtype == torch.float32
        torch.testing.assert_close(given, other, rtol=0.03, atol=0.01)


def test_a_product_with_one_column_for_each_task_is_that_product():
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(column_products(x, weight), (x * weight[:, None]).sum(2))
    assert torch.autograd.gradcheck(column_products, (x, weight))


def test_a_tables_gradient_by_the_compiled_loop_is_torchs_own(training_loops, monkeypatch):
    torch.manual_seed(0)
    layer = InputLayer(SCHEMA, embedding_std=1.0)
    codes = torch.from_numpy(np.repeat(CODES, 50, axis=0))
    values = torch.from_numpy(np.repeat(VALUES, 50, axis=0))
    found = gradients(layer, layer(codes, values))
    monkeypatch.setattr("training.loops.compiled", None)
    wanted = gradients(layer, layer(codes, values))
    assert found.keys() == wanted.keys() and len(found) == 3
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize(
    ("rows", "values", "refused"),
    [
        ([0, 3], np.ones((2, 2)), "rows: found 3, expected below 3"),
        ([-1], np.ones((1, 2)), "rows: found -1, expected below 3"),
        ([0], np.ones((2, 2)), r"values: found \[2, 2\], expected \[1, 2\]"),
        ([0], np.ones((1, 3)), r"values: found \[1, 3\], expected \[1, 2\]"),
    ],
)
def test_the_compiled_loop_refuses_what_does_not_fit(training_loops, rows, values, refused):
    with pytest.raises(ValueError, match=refused):
        training_loops.add_rows(np.zeros((3, 2), np.float32), np.array(rows), values.astype(np.float32))


def test_shared_bottom_gives_every_task_the_same():
    torch.manual_seed(1)
    x = torch.randn(4, 7)
    backbone = SharedBottom(small(), 7, 3)
    found = backbone(x).detach().numpy()
    for task in range(3):
        np.testing.assert_allclose(found[task], mlp(backbone.bottom, 0, x.numpy()), rtol=1e-5, atol=1e-6)


def test_mmoe_is_a_loop_over_tasks_and_experts():
    torch.manual_seed(2)
    x = torch.randn(4, 7)
    backbone = MMOE(small(), 7, 3)
    found = backbone(x).detach().numpy()
    experts = [mlp(backbone.experts, e, x.numpy()) for e in range(3)]
    for task in range(3):
        expected = mixed(gate(backbone.gates, task, x.numpy()), experts)
        np.testing.assert_allclose(found[task], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2])
def test_ple_is_a_loop_over_levels_tasks_and_experts(levels):
    torch.manual_seed(3)
    x = torch.randn(4, 7)
    backbone = PLE(small("ple", levels=levels), 7, 3)
    found = backbone(x).detach().numpy()
    inputs = [x.numpy()] * 4  # tasks 0–2, shared
    for level in backbone.levels:
        shared = [mlp(level.experts, e, inputs[3]) for e in range(2)]
        own = [[mlp(level.experts, 2 + 2 * t + e, inputs[t]) for e in range(2)] for t in range(3)]
        outputs = [mixed(gate(level.gates, t, inputs[t]), shared + own[t]) for t in range(3)]
        if not level.last:
            every = shared + own[0] + own[1] + own[2]
            outputs.append(mixed(gate(level.shared_gate, 0, inputs[3]), every))
        inputs = outputs
    for task in range(3):
        np.testing.assert_allclose(found[task], inputs[task], rtol=1e-5, atol=1e-6)


def test_latent_head_gives_the_papers_products():
    torch.manual_seed(4)
    network = Network(small(), SCHEMA, 3).eval()
    rates = np.array([0.4, 0.02, 0.003])
    initialise(network, rates, ("click", "like", "follow"))
    logits = network(torch.from_numpy(CODES), torch.from_numpy(VALUES))
    out = logits.probabilities()
    u = torch.sigmoid(logits.h_B)[:, None]
    a, b = torch.sigmoid(logits.f_BT), torch.tensor(0.3 * rates) * torch.sigmoid(logits.g_BT)
    torch.testing.assert_close(out.p_BT.double(), (a * u + b * (1 - u)).double())
    torch.testing.assert_close(out.p_joint_BT, a * u)
    log_p, log_not_p = logits.log_p()
    torch.testing.assert_close(log_p.exp(), out.p_BT)
    torch.testing.assert_close(log_p.exp() + log_not_p.exp(), torch.ones_like(log_p))
    assert ((b > 0) & (b < torch.tensor(0.3 * rates))).all()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_starts_at_its_base_rates(name):
    torch.manual_seed(5)
    network = Network(small(name), SCHEMA, 3).eval()
    rates = np.array([0.44, 0.017, 0.0008])
    initialise(network, rates, ("click", "like", "follow"))
    p = network(torch.from_numpy(CODES), torch.from_numpy(VALUES)).probabilities().p_BT.mean(0)
    np.testing.assert_allclose(p.detach().numpy(), rates, rtol=0.25)


def test_without_initialisation_tasks_start_far_from_their_base_rates():
    torch.manual_seed(5)
    network = Network(small("mmoe", base_rate_init=False), SCHEMA, 3).eval()
    initialise(network, np.array([0.44, 0.017, 0.0008]), ("click", "like", "follow"))
    p = network(torch.from_numpy(CODES), torch.from_numpy(VALUES)).probabilities().p_BT.mean(0)
    assert p[2] > 0.3


def test_alpha_is_k_times_the_base_rate():
    network = Network(small(alpha_k=0.2), SCHEMA, 2)
    initialise(network, np.array([0.4, 0.01]), ("click", "like"))
    assert isinstance(network.head, LatentHead)
    np.testing.assert_allclose(network.head.alpha.numpy(), [0.08, 0.002], rtol=1e-6)


def test_a_prior_too_low_for_the_densest_task_is_refused_with_the_smallest_possible():
    network = Network(small(prior_up=0.3), SCHEMA, 2)
    with pytest.raises(InitialisationImpossible, match=r"'click' of base rate 0.4500.*got 0.3.*more than 0\.4102"):
        initialise(network, np.array([0.45, 0.01]), ("click", "like"))
