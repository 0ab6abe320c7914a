"""The doctor against real mistakes: MAML in PyTorch with the bug in it, as people write it.

Nothing below knows how the doctor predicts a mistake. Every function is an implementation of MAML
that is right but for one thing, and the doctor has to say which.
"""

import itertools

import numpy as np
import pytest

import npmeta as nm
from npmeta.verification import FAULTS, Doctor
from npmeta.verification.doctor.faults.normalised import NORMALISED
from npmeta.verification.doctor.noise import Noise
from npmeta.verification.doctor.recipe import Recipe

# one_thread is a fixture that every test of a module takes which has its name.
from tests.peers.test_torch import TORCH_ACTIVATIONS, TORCH_LOSSES, one_thread  # noqa: F401
from tests.test_verification_doctor import (
    DESIGNS,
    check_design,
    check_pair,
    likely_pairs,
    times,
    wrong_gradients,
)

torch = pytest.importorskip("torch")
F = torch.nn.functional

ALPHA, S = 0.1, 3


class Case:
    """A problem, and its parts as tensors: the design in which no two mistakes coincide."""

    def __init__(self, activation="tanh", loss="mse", widths=(4, 8, 8, 11), dtype=np.float64):
        rng = np.random.default_rng(0)
        model = nm.MLP(widths, activation)
        theta = model.init(rng) + 0.1 * rng.normal(size=model.n_params)
        T, K, Q = 3, 5, 7
        x = rng.normal(size=(T, K + Q, widths[0]))
        y = rng.normal(size=(T, K + Q, widths[-1]))
        if loss == "cross_entropy":
            y = rng.integers(widths[-1], size=(T, K + Q))
        tasks = nm.TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])
        self.problem = nm.Problem(nm.MAML(model, loss, ALPHA, S), theta.astype(dtype), tasks)
        self.doctor = Doctor(self.problem)
        self.widths, self.activation, self.loss = widths, TORCH_ACTIVATIONS[activation], loss
        self.theta = torch.tensor(theta, dtype=getattr(torch, np.dtype(dtype).name))
        parts = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        self.tasks = [[self.tensor(part[t]) for part in parts] for t in range(T)]

    def tensor(self, values):
        t = torch.tensor(values)
        return t.to(self.theta.dtype) if t.is_floating_point() else t

    def parameters(self):
        """W_1, b_1, W_2, ... as leaves of a graph."""
        shapes = [s for a, b in itertools.pairwise(self.widths) for s in ((a, b), (b,))]
        pieces = self.theta.split([int(np.prod(s)) for s in shapes])
        return [
            piece.reshape(s).clone().requires_grad_() for piece, s in zip(pieces, shapes, strict=True)
        ]

    def network(self, phi, x, activation=None):
        for l, (W, b) in enumerate(zip(phi[::2], phi[1::2], strict=True)):
            x = x @ W + b
            if l < len(phi) // 2 - 1:
                x = (activation or self.activation)(x)
        return x

    def loss_at(self, phi, x, y):
        return TORCH_LOSSES[self.loss](self.network(phi, x), y)


def flat(arrays):
    return torch.cat([a.detach().reshape(-1) for a in arrays]).numpy()


def maml(
    case,
    *,
    alpha=ALPHA,
    steps=S,
    create_graph=lambda s: True,
    unpack=lambda sx, sy, qx, qy: (sx, sy, qx, qy),
    inner_loss=None,
    outer_loss=None,
    update=None,
    adapted=lambda i: True,
    backward=lambda losses: sum(losses) / len(losses),
):
    """MAML as it should be; every argument is where a bug goes."""
    theta = case.parameters()
    inner, outer = inner_loss or case.loss_at, outer_loss or case.loss_at
    losses = []
    for task in case.tasks:
        sx, sy, qx, qy = unpack(*task)
        phi = list(theta)
        state = {}
        for s in range(steps):
            loss = inner(phi, sx, sy)
            grads = torch.autograd.grad(loss, phi, create_graph=create_graph(s))
            if update is not None:
                grads = update(state, phi, grads)
            phi = [
                p - alpha * g if adapted(i) else p
                for i, (p, g) in enumerate(zip(phi, grads, strict=True))
            ]
        losses.append(outer(phi, qx, qy))
    backward(losses).backward()
    return theta


def gradient(case, **bug):
    return flat(p.grad for p in maml(case, **bug))


# --- one bug each -----------------------------------------------------------------------------------


def right(case):
    return gradient(case)


def first_order(case):
    """No create_graph."""
    return gradient(case, create_graph=lambda s: False)


def detached(case):
    return gradient(case, create_graph=lambda s: s >= 2)


def inner_lr_times_rows_and_outputs(case):
    """reduction="sum"."""
    return gradient(
        case, inner_loss=lambda phi, x, y: F.mse_loss(case.network(phi, x), y, reduction="sum")
    )


def inner_lr_times_outputs(case):
    return gradient(case, inner_loss=lambda phi, x, y: ((case.network(phi, x) - y) ** 2).sum(-1).mean())


def inner_lr_times_rows(case):
    return gradient(case, inner_loss=lambda phi, x, y: ((case.network(phi, x) - y) ** 2).mean(-1).sum())


def inner_lr_over_rows(case):
    return gradient(case, inner_loss=lambda phi, x, y: case.loss_at(phi, x, y) / len(x))


def inner_lr_over_outputs(case):
    return gradient(case, inner_loss=lambda phi, x, y: case.loss_at(phi, x, y) / y.shape[-1])


def inner_lr_halved(case):
    return gradient(case, inner_loss=lambda phi, x, y: 0.5 * case.loss_at(phi, x, y))


def inner_lr_doubled(case):
    return gradient(case, alpha=2 * ALPHA)


def inner_lr(case):
    return gradient(case, alpha=0.0371)


def inner_ascent(case):
    return gradient(case, alpha=-ALPHA)


def not_adapted(case):
    """The fast weights are made, and the query loss is computed without them."""
    theta = case.parameters()
    for sx, sy, qx, qy in case.tasks:
        phi = list(theta)
        for _ in range(S):
            grads = torch.autograd.grad(case.loss_at(phi, sx, sy), phi, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
        (case.loss_at(theta, qx, qy) / len(case.tasks)).backward()
    return flat(p.grad for p in theta)


def outer_step_per_task(case):
    """zero_grad(), backward() and step() inside the loop."""
    theta, total = case.parameters(), 0
    optimizer = torch.optim.SGD(theta, lr=0.01)
    for sx, sy, qx, qy in case.tasks:
        phi = list(theta)
        for _ in range(S):
            grads = torch.autograd.grad(case.loss_at(phi, sx, sy), phi, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
        optimizer.zero_grad()
        case.loss_at(phi, qx, qy).backward()
        optimizer.step()
        total = total + flat(p.grad for p in theta)
    return total


def one_step_fewer(case):
    return gradient(case, steps=S - 1)


def one_step_more(case):
    return gradient(case, steps=S + 1)


def inner_gradient_at_theta(case):
    theta = case.parameters()
    losses = []
    for sx, sy, qx, qy in case.tasks:
        phi = list(theta)
        for _ in range(S):
            grads = torch.autograd.grad(case.loss_at(theta, sx, sy), theta, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
        losses.append(case.loss_at(phi, qx, qy))
    torch.stack(losses).mean().backward()
    return flat(p.grad for p in theta)


def sets_swapped(case):
    return gradient(case, unpack=lambda sx, sy, qx, qy: (qx, qy, sx, sy))


def query_is_support(case):
    return gradient(case, unpack=lambda sx, sy, qx, qy: (sx, sy, sx, sy))


def adapted_on_query(case):
    return gradient(case, unpack=lambda sx, sy, qx, qy: (qx, qy, qx, qy))


def adapted_on_both(case):
    return gradient(
        case, unpack=lambda sx, sy, qx, qy: (torch.cat([sx, qx]), torch.cat([sy, qy]), qx, qy)
    )


def query_of_another_task(case):
    mixed = [[*a[:2], *b[2:]] for a, b in zip(case.tasks, case.tasks[1:] + case.tasks[:1], strict=True)]
    tasks, case.tasks = case.tasks, mixed
    try:
        return gradient(case)
    finally:
        case.tasks = tasks


def no_reset(case):
    """The initial weights are mutated between tasks."""
    theta = case.parameters()
    for sx, sy, qx, qy in case.tasks:
        phi = list(theta)
        for _ in range(S):
            grads = torch.autograd.grad(case.loss_at(phi, sx, sy), phi, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
        (case.loss_at(phi, qx, qy) / len(case.tasks)).backward()
        for p, adapted in zip(theta, phi, strict=True):
            p.data = adapted.data
    return flat(p.grad for p in theta)


def no_reset_through_graph(case):
    theta = case.parameters()
    phi = list(theta)
    losses = []
    for sx, sy, qx, qy in case.tasks:
        for _ in range(S):
            grads = torch.autograd.grad(case.loss_at(phi, sx, sy), phi, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
        losses.append(case.loss_at(phi, qx, qy))
    torch.stack(losses).mean().backward()
    return flat(p.grad for p in theta)


def inner_gradients_accumulate(case):
    def update(state, phi, grads):
        state["sum"] = [a + g for a, g in zip(state.get("sum", [0] * len(grads)), grads, strict=True)]
        return state["sum"]

    return gradient(case, update=update)


def accumulator_survives_tasks(case):
    """A mutable default, whose contents of earlier tasks are constants."""

    def update(state, phi, grads, sums=[]):  # noqa: B006
        if not sums:
            sums.extend([0] * len(grads))
        if not state:  # a new task
            sums[:] = [a.detach() if torch.is_tensor(a) else a for a in sums]
            state["begun"] = True
        sums[:] = [a + g for a, g in zip(sums, grads, strict=True)]
        return list(sums)

    return gradient(case, update=update)


def inner_momentum(case):
    def update(state, phi, grads):
        before = state.get("v", [0] * len(grads))
        state["v"] = [0.8 * v + g for v, g in zip(before, grads, strict=True)]
        return state["v"]

    return gradient(case, update=update)


def biases_not_adapted(case):
    return gradient(case, adapted=lambda i: i % 2 == 0)


def only_head_adapted(case):
    return gradient(case, adapted=lambda i: i >= 4)


def head_not_adapted(case):
    return gradient(case, adapted=lambda i: i < 4)


def inner_weight_decay(case):
    return gradient(
        case, update=lambda state, phi, grads: [g + 3e-3 * p for p, g in zip(phi, grads, strict=True)]
    )


def other_activation(case):
    def loss_at(phi, x, y):
        return F.mse_loss(case.network(phi, x, F.elu), y)

    return gradient(case, inner_loss=loss_at, outer_loss=loss_at)


def support_gradients_leaked(case):
    """loss.backward() in the inner loop fills θ's .grad, which nobody empties."""
    theta = case.parameters()
    for sx, sy, qx, qy in case.tasks:
        phi = list(theta)
        for _ in range(S):
            loss = case.loss_at(phi, sx, sy)
            grads = torch.autograd.grad(loss, phi, create_graph=True)
            loss.backward(retain_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
        (case.loss_at(phi, qx, qy) / len(case.tasks)).backward()
    return flat(p.grad for p in theta)


def loss_after_every_step(case):
    theta = case.parameters()
    total = 0
    for sx, sy, qx, qy in case.tasks:
        phi = list(theta)
        for _ in range(S):
            grads = torch.autograd.grad(case.loss_at(phi, sx, sy), phi, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
            total = total + case.loss_at(phi, qx, qy) / len(case.tasks)
    total.backward()
    return flat(p.grad for p in theta)


# --- adjoints written by hand -----------------------------------------------------------------------


def by_hand(case, backward):
    """The mean over tasks of an adjoint; ``backward`` is given φ_0..φ_S, q and Hessian products."""
    total = 0
    for sx, sy, qx, qy in case.tasks:
        points = [[p.detach() for p in case.parameters()]]
        for _ in range(S):
            phi = [p.clone().requires_grad_() for p in points[-1]]
            grads = torch.autograd.grad(case.loss_at(phi, sx, sy), phi)
            points.append([(p - ALPHA * g).detach() for p, g in zip(phi, grads, strict=True)])
        phi = [p.clone().requires_grad_() for p in points[-1]]
        q = torch.autograd.grad(case.loss_at(phi, qx, qy), phi)

        def product(s, v, x=sx, y=sy, points=points):
            def loss(*arrays):
                return case.loss_at(arrays, x, y)

            return torch.autograd.functional.hvp(loss, tuple(points[s]), tuple(v))[1]

        def query_product(s, v, x=qx, y=qy, points=points):
            return product(s, v, x, y, points)

        total = total + flat(backward(list(q), product, query_product)) / len(case.tasks)
    return total


def combination(a, v, b, w):
    return [a * p + b * r for p, r in zip(v, w, strict=True)]


def through(case, where, order=None, sign=-1.0, identity=1.0, query=False):
    def backward(lam, product, query_product):
        for s in order or reversed(range(S)):
            H = query_product if query else product
            lam = combination(identity, lam, sign * ALPHA, H(where(s), lam))
        return lam

    return by_hand(case, backward)


def hessian_at_theta(case):
    return through(case, lambda s: 0)


def hessian_at_end(case):
    return through(case, lambda s: S)


def hessian_at_next(case):
    return through(case, lambda s: s + 1)


def query_hessian(case):
    return through(case, lambda s: s, query=True)


def reversed_product(case):
    return through(case, lambda s: s, order=range(S))


def hessian_sign(case):
    return through(case, lambda s: s, sign=1.0)


def identity_lost(case):
    return through(case, lambda s: s, identity=0.0)


def backward_lr(case):
    return through(case, lambda s: s, sign=-1 / ALPHA)


def linearised(case):
    def backward(q, product, _):
        lam = q
        for s in range(S):
            lam = combination(1, lam, -ALPHA, product(s, q))
        return lam

    return by_hand(case, backward)


def first_order_part_lost(case):
    return right(case) - first_order(case)


def second_order_weight(case):
    return 0.7 * first_order(case) + 0.3 * right(case)


# --- right gradients, handed over wrongly -----------------------------------------------------------


def zeros(case):
    theta = maml(case)
    torch.optim.SGD(theta, 0.1).zero_grad(set_to_none=False)
    return flat(p.grad for p in theta)


def last_task_only(case):
    return gradient(case, backward=lambda losses: losses[-1])


def first_task_only(case):
    return gradient(case, backward=lambda losses: losses[0])


def task_skipped(case):
    return gradient(case, backward=lambda losses: sum(losses[1:]) / len(losses))


def weights_transposed(case):
    return flat(p.grad.mT if p.ndim == 2 else p.grad for p in maml(case))


def other_order(case):
    theta = maml(case)
    names = [f"layer{i // 2}.{'kernel' if i % 2 == 0 else 'bias'}" for i in range(len(theta))]
    return flat(p.grad for _, p in sorted(zip(names, theta, strict=True), key=lambda item: item[0]))


def block_zero(case):
    theta = maml(case)
    theta[2].grad.zero_()
    return flat(p.grad for p in theta)


def block_first_order(case):
    """One array's gradient is detached."""
    theta = case.parameters()
    losses = []
    for sx, sy, qx, qy in case.tasks:
        phi = list(theta)
        for _ in range(S):
            grads = torch.autograd.grad(case.loss_at(phi, sx, sy), phi, create_graph=True)
            phi = [p - ALPHA * g for p, g in zip(phi, grads, strict=True)]
        losses.append(case.loss_at(phi, qx, qy))
    exact = torch.autograd.grad(torch.stack(losses).mean(), theta)
    plain = first_order(case)
    start = theta[0].numel() + theta[1].numel()
    c = flat(exact)
    c[start : start + theta[2].numel()] = plain[start : start + theta[2].numel()]
    return c


def reptile(case):
    theta = case.parameters()
    total = [torch.zeros_like(p) for p in theta]
    for sx, sy, *_ in case.tasks:
        phi = [p.detach().clone().requires_grad_() for p in theta]
        optimizer = torch.optim.SGD(phi, ALPHA)
        for _ in range(S):
            optimizer.zero_grad()
            case.loss_at(phi, sx, sy).backward()
            optimizer.step()
        for sum_, p, adapted in zip(total, theta, phi, strict=True):
            sum_ += (p - adapted).detach() / ALPHA / len(case.tasks)
    return flat(total)


def updated_theta(case):
    theta = maml(case)
    torch.optim.SGD(theta, 0.037).step()
    return flat(theta)


def at_updated_theta(case):
    theta = maml(case)
    torch.optim.SGD(theta, 0.037).step()
    before, case.theta = case.theta, torch.cat([p.detach().reshape(-1) for p in theta])
    try:
        return gradient(case)
    finally:
        case.theta = before


def outer_weight_decay(case):
    theta = maml(case)
    return flat(p.grad + 5e-4 * p for p in theta)


def values_clipped(case):
    theta = maml(case)
    torch.nn.utils.clip_grad_value_(theta, 0.05)
    return flat(p.grad for p in theta)


def norm_clipped(case):
    theta = maml(case)
    torch.nn.utils.clip_grad_norm_(theta, 0.1)
    return flat(p.grad for p in theta)


def standardised(case):
    c = right(case)
    return (c - c.mean()) / c.std()


def not_finite(case):
    c = right(case)
    c[5] = np.nan
    return c


def summed_over_tasks(case):
    return gradient(case, backward=sum)


def divided_by_tasks_twice(case):
    return gradient(case, backward=lambda losses: sum(losses) / len(losses) ** 2)


def times_query_rows(case):
    return gradient(case, outer_loss=lambda phi, x, y: ((case.network(phi, x) - y) ** 2).mean(-1).sum())


def times_outputs(case):
    return gradient(case, outer_loss=lambda phi, x, y: ((case.network(phi, x) - y) ** 2).sum(-1).mean())


def times_query_rows_and_outputs(case):
    return gradient(
        case, outer_loss=lambda phi, x, y: F.mse_loss(case.network(phi, x), y, reduction="sum")
    )


def times_support_rows(case):
    return len(case.tasks[0][0]) * right(case)


def over_query_rows(case):
    return gradient(case, outer_loss=lambda phi, x, y: case.loss_at(phi, x, y) / len(x))


def over_support_rows(case):
    return right(case) / len(case.tasks[0][0])


def over_outputs(case):
    return right(case) / case.widths[-1]


def doubled(case):
    """No zero_grad between two passes."""
    theta = case.parameters()
    parameters, case.parameters = case.parameters, lambda: theta
    try:
        maml(case)
        return gradient(case)
    finally:
        case.parameters = parameters


def halved(case):
    return gradient(case, outer_loss=lambda phi, x, y: case.loss_at(phi, x, y) / 2)


def negated(case):
    return gradient(case, backward=lambda losses: -sum(losses) / len(losses))


def update(case):
    return flat(-0.0037 * p.grad for p in maml(case))


def scaled(case):
    return 0.123 * right(case)


BUGS = {name: bug for name, bug in globals().items() if name in FAULTS}
#: These need another network, loss or step sizes, and are tested below, in test_warp_torch.py, in
#: test_doctor_normalisation.py, or on their golden cases.
OTHER_CASES = {
    *("targets_broadcast", "softmax_twice", "float32", "frozen_adapted", "frozen_zero"),
    *("cross_terms_lost", "structure_not_adapted"),
    *(fault.id for fault in NORMALISED),
}


def test_every_mistake_is_made_here():
    assert set(BUGS) | OTHER_CASES == set(FAULTS)


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.fixture(scope="module")
def single():
    return Case(dtype=np.float32)


@pytest.mark.parametrize("id", BUGS)
def test_the_mistake_is_named(case, id):
    found = case.doctor.diagnose(BUGS[id](case))
    assert (found.verdict, found.fault, found.ties) == ("fail", id, ()), str(found)


@pytest.mark.parametrize("id", BUGS)
def test_in_float32(single, id):
    answer = BUGS[id](single)
    assert answer.dtype == np.float32
    found = single.doctor.diagnose(answer)
    assert (found.verdict, found.fault, found.ties) == ("fail", id, ()), str(found)


def test_right_answers_pass(case, single):
    assert case.doctor.diagnose(right(case)).verdict == "pass"
    assert single.doctor.diagnose(right(single)).verdict == "pass"


def test_float32_in_an_answer_that_says_float64(case, single):
    found = case.doctor.diagnose(right(single).astype(np.float64))
    assert (found.verdict, found.fault) == ("fail", "float32"), str(found)


@pytest.mark.parametrize(("activation", "wrong"), [("relu", "leaky_relu"), ("gelu", "gelu by tanh")])
def test_relatives_of_an_activation(activation, wrong):
    case = Case(activation)
    other = {
        "leaky_relu": F.leaky_relu,
        "gelu by tanh": lambda z: F.gelu(z, approximate="tanh"),
    }[wrong]
    case.activation = other
    found = case.doctor.diagnose(right(case))
    assert (found.fault, found.detail) == ("other_activation", wrong), str(found)


def test_targets_broadcast():
    """Outputs (rows, 1) less targets (rows,)."""
    case = Case(widths=(4, 8, 8, 1))

    def loss_at(phi, x, y):
        return ((case.network(phi, x) - y[:, 0]) ** 2).mean()

    found = case.doctor.diagnose(gradient(case, inner_loss=loss_at, outer_loss=loss_at))
    assert found.fault == "targets_broadcast", str(found)


def test_softmax_twice():
    case = Case(loss="cross_entropy")

    def loss_at(phi, x, y):
        return F.cross_entropy(F.softmax(case.network(phi, x), -1), y)

    found = case.doctor.diagnose(gradient(case, inner_loss=loss_at, outer_loss=loss_at))
    assert found.fault == "softmax_twice", str(found)


# --- two at once ------------------------------------------------------------------------------------


def test_pairs(case):
    both = {
        ("first_order", "inner_lr_times_rows"): gradient(
            case, alpha=5 * ALPHA, create_graph=lambda s: False
        ),
        ("one_step_more", "only_head_adapted"): gradient(case, steps=S + 1, adapted=lambda i: i >= 4),
        ("no_reset", "summed_over_tasks"): len(case.tasks) * no_reset(case),
        ("adapted_on_query", "inner_lr_doubled"): gradient(
            case, alpha=2 * ALPHA, unpack=lambda sx, sy, qx, qy: (qx, qy, qx, qy)
        ),
    }
    for ids, answer in both.items():
        found = case.doctor.diagnose(answer)
        assert found.fault is not None, str(found)
        assert set(found.fault.split(" + ")) == set(ids), str(found)


# --- long sweeps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_likely_pair(case, dtype):
    """Step-size factor × any, mask × any, scale × any, by their own predictions."""
    for explanation in likely_pairs(case.problem):
        check_pair(case.doctor, explanation, dtype)


def test_a_thousand_wrong_gradients(case):
    for c in wrong_gradients(case.problem, 1000, seed=1):
        found = case.doctor.diagnose(c)
        assert (found.verdict, found.fault) == ("fail", None), str(found)


#: Rounding decides on which side of a kink a unit is.
KINKED = ("relu", "leaky_relu", "elu")
#: Cut-off softplus, saturated softmax, loops that run away.
HARD = (64, 68, 99, 106, 124, 139, 183)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("seed", [*range(40), *HARD])
def test_no_false_alarm(seed, dtype):
    """Right gradients, PyTorch's: widths to 256, steps to 10, α from 1e-4 to 1, losses times 1e-6..1e6.

    Where the inner loop runs away the doctor may say that it cannot tell, but never "fail".
    """
    rng = np.random.default_rng(seed)
    activation = str(rng.choice(["relu", "leaky_relu", "elu", "tanh", "gelu", "silu", "softplus"]))
    hidden = [int(rng.choice([4, 16, 64, 256]))] * int(rng.integers(1, 4))
    widths = (int(rng.integers(1, 20)), *hidden, int(rng.integers(2, 12)))
    case = Case(activation, str(rng.choice(["mse", "cross_entropy"])), widths, dtype)
    alpha, steps = float(10.0 ** rng.uniform(-4, 0)), int(rng.integers(1, 11))
    factor = float(10.0 ** rng.choice([-6, -3, 0, 0, 3, 6]))

    def loss_at(phi, x, y):
        return factor * Case.loss_at(case, phi, x, y)

    answer = gradient(case, alpha=alpha, steps=steps, inner_loss=loss_at, outer_loss=loss_at)
    maml = nm.MAML(case.problem.maml.model, times(case.loss, factor), alpha, steps)
    problem = nm.Problem(maml, case.problem.theta, case.problem.tasks)
    found = nm.diagnose(problem, answer)
    assert found.verdict != "fail", f"{problem.maml}\n{found}"
    with np.errstate(all="ignore"):
        losses = maml.evaluate(problem.theta.astype(float), problem.tasks).loss
    well_behaved = Noise(problem).of(Recipe(), np.dtype(dtype).name) < 1e-3
    if well_behaved and (losses < 100 * losses[:, :1]).all() and activation not in KINKED:
        assert found.verdict == "pass", str(found)


@pytest.mark.parametrize("name", [*DESIGNS][3:])
def test_every_mistake_is_named_or_tied(name):
    check_design(name)
