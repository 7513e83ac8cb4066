"""The losses against naive products, and their gradients against the closed forms of Eq. 1–10."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from training import losses
from training.models.heads import LatentLogits, TaskLogits

TASKS = 4


def logits(seed: int, rows: int = 6, scale: float = 1.5, dtype=torch.float64) -> LatentLogits:
    random = torch.Generator().manual_seed(seed)
    h, f, g = (
        (torch.randn(shape, generator=random, dtype=torch.float64) * scale).to(dtype).requires_grad_()
        for shape in ((rows,), (rows, TASKS), (rows, TASKS))
    )
    return LatentLogits(h, f, g, torch.tensor([0.2, 0.05, 0.01, 0.002], dtype=dtype))


def labels(seed: int, rows: int = 6) -> torch.Tensor:
    return (torch.rand(rows, TASKS, generator=torch.Generator().manual_seed(seed)) < 0.4).double()


def parts(x: LatentLogits):
    """Return u [B, 1], a [B, T] and b [B, T] by their definitions."""
    return torch.sigmoid(x.h_B)[:, None], torch.sigmoid(x.f_BT), x.alpha_T * torch.sigmoid(x.g_BT)


def test_marginal_loss_is_a_loop_over_rows_and_tasks():
    x, y = logits(1), labels(2)
    u, a, b = (tensor.detach().numpy() for tensor in parts(x))
    expected = 0.0
    for row, task in itertools.product(range(6), range(TASKS)):
        p = a[row, task] * u[row, 0] + b[row, task] * (1 - u[row, 0])
        expected -= math.log(p if y[row, task] else 1 - p) / 6
    assert losses.marginal(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_joint_loss_is_a_loop_over_rows_and_states():
    x, y = logits(3), labels(4)
    u, a, b = (tensor.detach().numpy() for tensor in parts(x))
    expected = 0.0
    for row in range(6):
        up, not_up = u[row, 0], 1 - u[row, 0]
        for task in range(TASKS):
            up *= a[row, task] if y[row, task] else 1 - a[row, task]
            not_up *= b[row, task] if y[row, task] else 1 - b[row, task]
        expected -= math.log(up + not_up) / 6
    assert losses.joint(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_mixed_loss_lies_between_the_two_and_weights_reach_only_the_marginal_part():
    x, y, weights = logits(5), labels(6), torch.tensor([2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    mixed = losses.total("mixed", x, y, task_weights_T=weights, joint_share=0.3)
    assert mixed.item() == pytest.approx(
        0.3 * losses.joint(x, y).item() + 0.7 * losses.marginal(x, y, weights).item(), rel=1e-12
    )
    assert losses.total("joint", x, y, task_weights_T=weights).item() == losses.joint(x, y).item()


def test_a_model_without_the_latent_state_has_binary_cross_entropy():
    z = torch.randn(8, TASKS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = labels(7, rows=8)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").mean(0).sum()
    assert losses.total("joint", TaskLogits(z), y).item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradients_of_the_marginal_loss_are_the_closed_forms():
    x, y = logits(8), labels(9)
    (losses.marginal(x, y) * len(y)).backward()
    u, a, b = (tensor.detach() for tensor in parts(x))
    p = a * u + b * (1 - u)
    r1, r0 = u * a / p, u * (1 - a) / (1 - p)
    responsibility = torch.where(y == 1, r1, r0)
    torch.testing.assert_close(x.h_B.grad, (u - responsibility).sum(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(x.f_BT.grad, torch.where(y == 1, -r1 * (1 - a), r0 * a), rtol=1e-9, atol=1e-12)
    share = b / x.alpha_T
    expected_g = torch.where(y == 1, -(1 - r1) * (1 - share), (1 - r0) * b * (1 - share) / (1 - b))
    torch.testing.assert_close(x.g_BT.grad, expected_g, rtol=1e-9, atol=1e-12)


def gradient_of(y: list[int], *, h: float = 0.0, f: float = -1.0, g: float = 0.0):
    """Return the gradients of one row's marginal loss: of h, and of f [T]."""
    x = LatentLogits(
        torch.tensor([h], dtype=torch.float64, requires_grad=True),
        torch.full((1, TASKS), f, dtype=torch.float64, requires_grad=True),
        torch.full((1, TASKS), g, dtype=torch.float64),
        torch.full((TASKS,), 0.05, dtype=torch.float64),
    )
    losses.marginal(x, torch.tensor([y], dtype=torch.float64)).backward()
    return x.h_B.grad.item(), x.f_BT.grad[0]


def test_a_like_raises_both_p_like_given_up_and_p_up():
    only_like, f = gradient_of([1, 0, 0, 0], f=-2.0)
    assert f[0] < 0
    assert only_like < 0


def test_no_interaction_at_all_lowers_p_up():
    h, _ = gradient_of([0, 0, 0, 0])
    assert h > 0


@pytest.mark.parametrize("f", [-5.0, -3.0, -1.0, 0.0, 1.0, 3.0])
def test_another_interaction_lowers_p_like_given_up_and_raises_p_up_exactly_when_the_bound_says_so(f):
    h, f_gradients = gradient_of([0, 1, 0, 0], f=f)
    assert f_gradients[0] > 0
    a, b, u = 1 / (1 + math.exp(-f)), 0.025, 0.5
    p = a * u + b * (1 - u)
    assert (h < 0) == ((a - b) / p > (TASKS - 1) * (a - b) / (1 - p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["marginal", "joint", "mixed"])
def test_losses_and_gradients_stay_finite_at_extreme_logits(name, dtype):
    extremes = torch.tensor([-60.0, -20.0, 0.0, 20.0, 60.0], dtype=dtype)
    for h, f, g in itertools.product(extremes, repeat=3):
        x = LatentLogits(
            h.repeat(2).requires_grad_(),
            f.repeat(2, TASKS).requires_grad_(),
            g.repeat(2, TASKS).requires_grad_(),
            torch.full((TASKS,), 0.01, dtype=dtype),
        )
        y = torch.tensor([[0.0] * TASKS, [1.0] * TASKS], dtype=dtype)
        loss = losses.total(name, x, y)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(t.grad).all() for t in (x.h_B, x.f_BT, x.g_BT))


def test_every_u_of_the_unidentified_range_gives_the_same_marginal_loss():
    """The flaw that the joint loss mends: the marginal loss cannot tell these u apart."""
    p, alpha = np.array([0.3, 0.02, 0.01, 0.005]), 0.3 * np.array([0.3, 0.02, 0.01, 0.005])
    y = labels(11, rows=50)
    found = {"marginal": [], "joint": []}
    for u in (0.35, 0.6, 0.9):
        b = alpha / 2
        a = (p - (1 - u) * b) / u
        x = LatentLogits(
            torch.full((50,), math.log(u / (1 - u)), dtype=torch.float64),
            torch.logit(torch.tensor(a)).expand(50, -1),
            torch.zeros(50, TASKS, dtype=torch.float64),
            torch.tensor(alpha),
        )
        found["marginal"].append(losses.marginal(x, y).item())
        found["joint"].append(losses.joint(x, y).item())
    assert np.ptp(found["marginal"]) < 1e-9
    assert np.ptp(found["joint"]) > 0.1
