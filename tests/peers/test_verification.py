"""No false alarm: correct gradients of PyTorch and JAX pass, whatever the network, precision or scale.

Thousands of meta-gradients, all of them right: float64 and float32, all activations and losses, widths
to 256, 0 to 10 inner steps, step sizes from 1e-4 to 1, losses times 1e-6 to 1e6. Each must pass, or be
inconclusive with a reason, which less than one in a hundred may be.
"""

import itertools
import runpy
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.verification import Verdict, check_gradient, check_meta_gradient, check_taylor
from tests.helpers import Problem, problem
from tests.test_verification_meta_gradients import scaled

WIDTHS = [(4,), (16,), (32, 32), (64,), (16, 16, 16), (256,), (128, 32)]


class Case(NamedTuple):
    p: Problem
    alpha: float
    factor: float
    S: int

    @property
    def maml(self) -> nm.MAML:
        return nm.MAML(self.p.model, scaled(self.p.loss, self.factor), self.alpha, self.S)

    def __str__(self) -> str:
        return f"{self.p}, {self.S} steps of {self.alpha:g}, loss times {self.factor:g}"


def case(rng, activation, loss, hidden, S, dtype) -> Case:
    """A random problem whose inner loop does not run away."""
    while True:
        p = problem(loss, activation, hidden, seed=int(rng.integers(2**31)), T=2)
        if rng.uniform() < 0.3:  # with zero biases, as networks begin
            p = Problem(p.model, loss, p.model.init(rng), p.tasks)
        p = p.astype(dtype)
        alpha, factor = 10 ** rng.uniform(-4, 0), 10 ** rng.uniform(-6, 6)
        if alpha * factor > 1:
            alpha /= factor
        found = Case(p, float(np.float32(alpha)), float(np.float32(factor)), S)
        with np.errstate(all="ignore"):
            losses = found.maml.evaluate(p.theta, p.tasks).loss
        # What has run away has no digits that are not rounding's, and float32 no numbers for it.
        if (np.abs(losses) <= 100 * (np.abs(losses[:, :1]) + factor)).all():
            return found


def settings(seed, repeats):
    """Every activation with every loss, in turns of everything else."""
    rng = np.random.default_rng(seed)
    pairs = itertools.product(range(repeats), ACTIVATIONS, LOSSES)
    for i, (_, activation, loss) in enumerate(pairs):
        dtype = (np.float64, np.float32)[i % 2]
        yield rng, activation, loss, WIDTHS[rng.integers(len(WIDTHS))], int(rng.integers(11)), dtype


class Tally:
    """Verdicts counted, and what was not a pass kept."""

    def __init__(self):
        self.verdicts, self.others = Counter(), []

    def add(self, what, report):
        self.verdicts[report.verdict] += 1
        if not report.passed:
            self.others.append(f"{what}\n{report}")
            reasons = [f.reason for f in report.findings if f.verdict is Verdict.INCONCLUSIVE]
            assert all(reasons), report

    def assert_no_false_alarm(self, at_least):
        n = self.verdicts.total()
        assert n >= at_least
        told = "\n\n".join(self.others)
        assert self.verdicts[Verdict.FAIL] == 0, told
        assert self.verdicts[Verdict.INCONCLUSIVE] < 0.01 * n, told


def test_meta_gradients_of_pytorch():
    torch = pytest.importorskip("torch")
    from tests.peers import test_torch as peer

    # PyTorch's own goes over to the identity at 20, where the difference is still 2e-9.
    exact = {"softplus": lambda z: torch.nn.functional.softplus(z, threshold=40)}
    torch.set_num_threads(1)
    tally = Tally()
    for setting in settings(0, 15):
        c = case(*setting)
        p, dtype = c.p, peer.tensor(c.p.theta).dtype
        with pytest.MonkeyPatch.context() as patch:
            for name, f in exact.items():
                patch.setitem(peer.TORCH_ACTIVATIONS, name, f)
            theta = peer.tensor(p.theta).requires_grad_()
            total = 0
            for t in range(len(p.tasks)):
                x, y, qx, qy = (peer.tensor(part[t], dtype) for part in (*p.support, *p.query))
                phi = theta
                for _ in range(c.S):
                    loss = c.factor * peer.TORCH_LOSSES[p.loss](peer.network(p, phi, x), y)
                    phi = phi - c.alpha * torch.autograd.grad(loss, phi, create_graph=True)[0]
                total = total + c.factor * peer.TORCH_LOSSES[p.loss](peer.network(p, phi, qx), qy)
            (total / len(p.tasks)).backward()
        tally.add(c, check_meta_gradient(c.maml, p.theta, p.tasks, theta.grad.numpy()))
    tally.assert_no_false_alarm(at_least=1000)


def test_meta_gradients_of_jax():
    jax = pytest.importorskip("jax")
    from tests.peers import test_jax as peer

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    tally = Tally()
    try:
        # A function is compiled for each network, so many draws share one.
        for rng, activation, loss, hidden, S, _ in itertools.islice(settings(1, 1), 0, None, 3):
            shape = problem(loss, activation, hidden, T=2)
            risk = peer.risk(shape)

            @jax.jit
            def gradient(theta, alpha, factor, x, y, qx, qy, risk=risk, S=S):
                def task(theta, x, y, qx, qy):
                    phi = theta
                    for _ in range(S):
                        phi = phi - alpha * factor * jax.grad(risk)(phi, x, y)
                    return factor * risk(phi, qx, qy)

                def mean(theta):
                    return jax.vmap(task, (None, 0, 0, 0, 0))(theta, x, y, qx, qy).mean()

                return jax.grad(mean)(theta)

            for i in range(44):
                dtype = (np.float64, np.float32)[i % 2]
                c = case(rng, activation, loss, hidden, S, dtype)
                found = gradient(c.p.theta, dtype(c.alpha), dtype(c.factor), *peer.arrays(c.p))
                tally.add(c, check_meta_gradient(c.maml, c.p.theta, c.p.tasks, np.asarray(found)))
    finally:
        jax.config.update("jax_enable_x64", before)
    tally.assert_no_false_alarm(at_least=1000)


def test_a_pytorch_closure_in_two_lines():
    """As a user writes it, with and without kinks, in both precisions."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tally = Tally()
    for activation, dtype in itertools.product(
        ("ReLU", "Tanh", "GELU", "SiLU"), ("float64", "float32")
    ):
        for width in (4, 32):
            net = torch.nn.Sequential(
                torch.nn.Linear(3, width), getattr(torch.nn, activation)(), torch.nn.Linear(width, 2)
            ).to(getattr(torch, dtype))
            x, y = (torch.randn(10, n, dtype=getattr(torch, dtype)) for n in (3, 2))

            def closure(params, net=net, x=x, y=y):
                tensors = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
                loss = ((torch.func.functional_call(net, tensors, x) - y) ** 2).mean()
                loss.backward()
                return loss.item(), {name: tensor.grad for name, tensor in tensors.items()}

            params = {name: p.detach().numpy() for name, p in net.named_parameters()}
            for check in (check_gradient, check_taylor):
                tally.add(f"{check.__name__}, {activation}, {dtype}, {width}", check(closure, params))

            def detached(params, closure=closure):
                loss, gradient = closure(params)
                return loss, {name: torch.relu(g) for name, g in gradient.items()}

            assert check_gradient(detached, params).verdict is Verdict.FAIL
    tally.assert_no_false_alarm(at_least=32)


def test_the_example_of_the_documentation():
    pytest.importorskip("torch")
    example = Path(__file__).parents[2] / "docs" / "examples" / "torch_closure.py"
    report = runpy.run_path(str(example))["report"]
    assert report.passed, report
    assert [finding.name for finding in report.findings] == ["0.weight", "0.bias", "2.weight", "2.bias"]
