"""The doctor against real mistakes with PyTorch's norms: MAML with the bug in it, as people write it.

As in test_doctor: nothing below knows how the doctor predicts a mistake.
"""

import itertools

import numpy as np
import pytest

from npmeta.verification import FAULTS, Doctor
from npmeta.verification.doctor.faults.normalised import NORMALISED
from tests.test_doctor_normalisation import pose

torch = pytest.importorskip("torch")
F = torch.nn.functional
functional_call, grad = torch.func.functional_call, torch.func.grad

from tests.peers.test_torch import one_thread  # noqa: E402

__all__ = ["one_thread"]

ALPHA, S = 0.1, 3


class Net(torch.nn.Module):
    """What people write: Linear, norm, tanh, ..., Linear, with parts that a bug may replace."""

    def __init__(self, widths, norm, **options):
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.linear = torch.nn.ModuleList(torch.nn.Linear(*pair) for pair in pairs)
        self.norm = torch.nn.ModuleList(norm(n, **options) for n in widths[1:-1])

    def forward(self, x):
        for linear, norm in zip(self.linear[:-1], self.norm, strict=True):
            x = self.hidden(linear(x), norm)
        return self.linear[-1](x)

    def hidden(self, z, norm):
        return torch.tanh(norm(z))


class ByHand(torch.nn.Module):
    """Batch normalisation written out."""

    def __init__(self, n, formula):
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.zeros(n)) for _ in range(2))
        self.formula = formula

    def forward(self, z):
        return self.weight * self.formula(z) + self.bias


class Case:
    def __init__(self, norm, adapt_norm, dtype):
        self.problem = pose(norm, adapt_norm=adapt_norm)
        self.doctor = Doctor(self.problem)
        self.norm, self.adapt_norm, self.dtype = norm, adapt_norm, getattr(torch, dtype)
        tasks = self.problem.tasks
        parts = (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        self.tasks = [[torch.tensor(p[t]).to(self.dtype) for p in parts] for t in range(len(tasks))]

    def net(self, kind=None, cls=Net, **options):
        module = {"batch": torch.nn.BatchNorm1d, "layer": torch.nn.LayerNorm}[kind or self.norm]
        if module is torch.nn.BatchNorm1d and "formula" not in options:
            options = {"track_running_stats": False, **options}
        net = cls(self.problem.model.widths, ByHand if "formula" in options else module, **options)
        net = net.to(self.dtype)
        layers = self.problem.model.unpack(self.problem.theta)
        with torch.no_grad():
            for linear, (W, b, *_) in zip(net.linear, layers, strict=True):
                linear.weight.copy_(torch.tensor(W.T))
                linear.bias.copy_(torch.tensor(b))
            for norm, (*_, scale, shift) in zip(net.norm, layers, strict=False):
                if getattr(norm, "weight", None) is not None:
                    norm.weight.copy_(torch.tensor(scale))
                    norm.bias.copy_(torch.tensor(shift))
        return net

    def flat(self, net, grads):
        """By npmeta's order; what has no gradient is zero."""

        def part(name, like, transposed=False):
            g = grads.get(name)
            g = np.zeros(like.shape) if g is None else g.detach().numpy()
            return (g.T if transposed and grads.get(name) is not None else g).reshape(-1)

        found = []
        for l, (W, b, *norm) in enumerate(self.problem.model.unpack(self.problem.theta)):
            found += [part(f"linear.{l}.weight", W, transposed=True), part(f"linear.{l}.bias", b)]
            if norm:
                found += [part(f"norm.{l}.weight", norm[0]), part(f"norm.{l}.bias", norm[1])]
        return np.concatenate(found)


def maml(
    case,
    net,
    *,
    adapted=lambda name: True,
    query=lambda net, phi, task: functional_call(net, phi, (task[2],)),
    before_task=lambda net: None,
    before_query=lambda net: None,
    create_graph=True,
):
    theta = dict(net.named_parameters())
    for task in case.tasks:
        before_task(net)
        phi = dict(theta)
        for _ in range(S):
            moving = {n: p for n, p in phi.items() if adapted(n)}
            loss = F.mse_loss(functional_call(net, phi, (task[0],)), task[1])
            grads = torch.autograd.grad(
                loss, list(moving.values()), create_graph=create_graph, allow_unused=True
            )
            moved = zip(moving.items(), grads, strict=True)
            phi = phi | {n: p if g is None else p - ALPHA * g for (n, p), g in moved}
        before_query(net)
        # Task by task, before buffers are written to again: PyTorch would refuse.
        F.mse_loss(query(net, phi, task), task[3]).div(len(case.tasks)).backward()
        net.train()
    return case.flat(net, {name: p.grad for name, p in theta.items()})


def no_norm(name):
    return not name.startswith("norm")


def everything(name):
    return True


def run(case, net, **bug):
    return maml(case, net, **{"adapted": everything if case.adapt_norm else no_norm, **bug})


# --- the bugs -------------------------------------------------------------------------------------


def right(case):
    return run(case, case.net())


def norm_eval_mode(case):
    """model.eval() at the top: a fresh net with running statistics 0 and 1."""
    return run(case, case.net(track_running_stats=True).eval(), before_task=lambda net: net.eval())


def norm_eval_mode_on_query(case):
    """Buffers are copies that nobody keeps, as batch_stats of Flax that are thrown away."""

    def query(net, phi, task):
        return functional_call(net.eval(), (phi, fresh), (task[2],))

    net = case.net(track_running_stats=True)
    fresh = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return run(case, net, query=query)


def norm_running_statistics(case):
    """Buffers are set back for each task, and the query pass is in evaluation mode."""
    net = case.net(track_running_stats=True)

    def reset(net):
        for norm in net.norm:
            norm.reset_running_stats()

    return run(case, net, before_task=reset, before_query=lambda net: net.eval())


def norm_statistics_leak(case):
    """The buffers outlive the task."""
    return run(case, case.net(track_running_stats=True), before_query=lambda net: net.eval())


def norm_statistics_leak_keras(case):
    """As Keras and Flax keep them: decay 0.99, and the biased variance."""

    class Moving(torch.nn.BatchNorm1d):
        mean, var = 0.0, 1.0

        def forward(self, z):
            if not self.training:
                return F.batch_norm(z, self.mean, self.var, self.weight, self.bias, eps=self.eps)
            self.mean = 0.99 * self.mean + 0.01 * z.detach().mean(0)
            self.var = 0.99 * self.var + 0.01 * z.detach().var(0, unbiased=False)
            return super().forward(z)

    return run(case, replaced(case, Moving), before_query=lambda net: net.eval())


def replaced(case, module):
    """The net with norms of another class."""
    net = case.net()
    norms = [module(n, track_running_stats=False) for n in case.problem.model.widths[1:-1]]
    for new, old in zip(norms, net.norm, strict=True):
        new.to(case.dtype).load_state_dict(old.state_dict())
    net.norm = torch.nn.ModuleList(norms)
    return net


def norm_support_statistics(case):
    """MetaBN: query rows by the moments of the support rows, which are differentiated through."""
    return run(case, case.net(cls=OfSupport), query=OfSupport.query)


def norm_support_statistics_constant(case):
    """momentum=1: one more pass over the support set for its statistics, then evaluation mode."""

    class Biased(torch.nn.BatchNorm1d):
        def forward(self, z):
            if self.training:
                self.mean, self.var = z.detach().mean(0), z.detach().var(0, unbiased=False)
                return super().forward(z)
            return F.batch_norm(z, self.mean, self.var, self.weight, self.bias, eps=self.eps)

    def query(net, phi, task):
        functional_call(net, phi, (task[0],))
        return functional_call(net.eval(), phi, (task[2],))

    return run(case, replaced(case, Biased), query=query)


def norm_joint_statistics(case):
    """torch.cat of support and query rows."""

    def query(net, phi, task):
        return functional_call(net, phi, (torch.cat([task[0], task[2]]),))[len(task[0]) :]

    return run(case, case.net(), query=query)


def norm_over_tasks(case):
    """Weights a task, and one batch of all rows for the norm."""
    net = case.net()
    theta = dict(net.named_parameters())
    sx, sy, qx, qy = (torch.stack(part) for part in zip(*case.tasks, strict=True))

    def forward(phi, x):
        for l, n in enumerate(case.problem.model.widths[1:-1]):
            z = x @ phi[f"linear.{l}.weight"].mT + phi[f"linear.{l}.bias"][:, None]
            normed = F.batch_norm(z.reshape(-1, n), None, None, training=True).reshape(z.shape)
            x = torch.tanh(phi[f"norm.{l}.weight"][:, None] * normed + phi[f"norm.{l}.bias"][:, None])
        l += 1
        return x @ phi[f"linear.{l}.weight"].mT + phi[f"linear.{l}.bias"][:, None]

    T = len(case.tasks)
    phi = {name: p.expand(T, *p.shape) for name, p in theta.items()}
    for _ in range(S):
        loss = T * F.mse_loss(forward(phi, sx), sy)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {
            name: p - ALPHA * g if case.adapt_norm or no_norm(name) else p
            for (name, p), g in zip(phi.items(), grads, strict=True)
        }
    F.mse_loss(forward(phi, qx), qy).backward()
    return case.flat(net, {name: p.grad for name, p in theta.items()})


def over(case):
    return 0 if case.norm == "batch" else -1


def hand_written(make):
    """A formula that is written out: make(z, axis) -> ẑ."""

    def bug(case):
        axis = over(case)
        return run(case, case.net(formula=lambda z: make(z, axis)))

    return bug


def _mean(z, axis):
    return z.mean(axis, keepdim=True)


def _var(z, axis, unbiased=False):
    return z.var(axis, keepdim=True, unbiased=unbiased)


norm_detached = hand_written(
    lambda z, axis: (z - _mean(z, axis).detach()) / (_var(z, axis).detach() + 1e-5).sqrt()
)
norm_unbiased = hand_written(
    lambda z, axis: (z - _mean(z, axis)) / (_var(z, axis, unbiased=True) + 1e-5).sqrt()
)
norm_unbiased_by_std = hand_written(
    lambda z, axis: (z - _mean(z, axis)) / (z.std(axis, keepdim=True) + 1e-5)
)
norm_eps_beside = hand_written(lambda z, axis: (z - _mean(z, axis)) / (_var(z, axis).sqrt() + 1e-3))
norm_axis_all = hand_written(lambda z, axis: (z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt())


def norm_eps(case):
    return run(case, case.net(eps=1e-3))


def norm_axis(case):
    return run(case, case.net("layer" if case.norm == "batch" else "batch"))


def norm_after_activation(case):
    class After(Net):
        def hidden(self, z, norm):
            return norm(torch.tanh(z))

    return run(case, case.net(cls=After))


def norm_left_out(case):
    class Without(Net):
        def hidden(self, z, norm):
            return torch.tanh(z)

    return run(case, case.net(cls=Without))


def norm_without_scale(case):
    option = "affine" if case.norm == "batch" else "elementwise_affine"
    return run(case, case.net(**{option: False}))


def norm_not_adapted(case):
    return run(case, case.net(), adapted=no_norm)


def norm_adapted(case):
    return run(case, case.net(), adapted=everything)


def norm_no_gradient(case):
    net = case.net()
    leaves = [p for n, p in net.named_parameters() if not no_norm(n)]
    run(case, net)
    for p in leaves:
        p.grad = None
    return case.flat(net, {n: p.grad for n, p in net.named_parameters()})


def biases_not_adapted(case):
    """By the name: the scale of a norm is called weight."""
    return run(
        case, case.net(), adapted=lambda n: n.endswith("weight") and (case.adapt_norm or no_norm(n))
    )


class OfSupport(Net):
    """Both sets go through, and the moments are those of the support rows."""

    def forward(self, x, support=None):
        support = x if support is None else support
        for linear, norm in zip(self.linear[:-1], self.norm, strict=True):
            z, s = linear(x), linear(support)
            mean, root = s.mean(0), (s.var(0, unbiased=False) + norm.eps).sqrt()
            x, support = (torch.tanh(norm.weight * (v - mean) / root + norm.bias) for v in (z, s))
        return self.linear[-1](x)

    @staticmethod
    def query(net, phi, task):
        return functional_call(net, phi, (task[2], task[0]))


def norm_detached_in_hessian(case):
    """An adjoint that is written out, whose Hessian products are of a net with constant moments."""
    net = case.net()
    constant = case.net(
        formula=lambda z: (
            (z - _mean(z, over(case)).detach()) / (_var(z, over(case)).detach() + 1e-5).sqrt()
        )
    )
    theta = dict(net.named_parameters())
    moves = {n: case.adapt_norm or no_norm(n) for n in theta}
    total = dict.fromkeys(theta, 0)
    for sx, sy, qx, qy in case.tasks:

        def loss(phi, x, y, module=net):
            return F.mse_loss(functional_call(module, phi, (x,)), y)

        points = [{n: p.detach() for n, p in theta.items()}]
        for _ in range(S):
            g = grad(loss)(points[-1], sx, sy)
            points.append({n: p - ALPHA * moves[n] * g[n] for n, p in points[-1].items()})
        lam = grad(loss)(points[-1], qx, qy)
        for phi in reversed(points[:-1]):

            def product(phi, v, sx=sx, sy=sy):
                leaves = {n: p.clone().requires_grad_() for n, p in phi.items()}
                value = loss(leaves, sx, sy, constant)
                g = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
                along = sum((a * v[n]).sum() for a, n in zip(g, leaves, strict=True))
                return dict(zip(leaves, torch.autograd.grad(along, list(leaves.values())), strict=True))

            h = product(phi, {n: ALPHA * moves[n] * v for n, v in lam.items()})
            lam = {n: lam[n] - h[n] for n in lam}
        total = {n: total[n] + lam[n] / len(case.tasks) for n in lam}
    return case.flat(net, total)


def norm_saved_statistics(case):
    """torch.func.vmap over tasks, in which the gradient of γ has saved statistics in it."""
    net = case.net()
    theta = dict(net.named_parameters())

    def loss(phi, x, y):
        return F.mse_loss(functional_call(net, phi, (x,)), y)

    def adapted(sx, sy, qx, qy):
        phi = theta
        for _ in range(S):
            grads = grad(loss)(phi, sx, sy)
            phi = {n: p - ALPHA * grads[n] for n, p in phi.items()}
        return loss(phi, qx, qy)

    parts = (torch.stack(part) for part in zip(*case.tasks, strict=True))
    torch.func.vmap(adapted)(*parts).mean().backward()
    return case.flat(net, {name: p.grad for name, p in theta.items()})


OF_BATCH = [
    norm_eval_mode,
    norm_eval_mode_on_query,
    norm_running_statistics,
    norm_statistics_leak,
    norm_statistics_leak_keras,
    norm_support_statistics,
    norm_support_statistics_constant,
    norm_joint_statistics,
    norm_over_tasks,
]
OF_BOTH = {
    "norm_detached": norm_detached,
    "norm_detached_in_hessian": norm_detached_in_hessian,
    "norm_unbiased": norm_unbiased,
    "norm_unbiased_by_std": norm_unbiased_by_std,
    "norm_eps": norm_eps,
    "norm_eps_beside": norm_eps_beside,
    "norm_axis": norm_axis,
    "norm_axis_all": norm_axis_all,
    "norm_after_activation": norm_after_activation,
    "norm_left_out": norm_left_out,
    "norm_without_scale": norm_without_scale,
    "norm_no_gradient": norm_no_gradient,
    "biases_not_adapted": biases_not_adapted,
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("adapt_norm", [True, False], ids=["moves", "stays"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_bugs_are_named(norm, adapt_norm, dtype):
    case = Case(norm, adapt_norm, dtype)
    found = case.doctor.diagnose(right(case).astype(dtype))
    assert found.verdict == "pass", str(found)
    bugs = dict(OF_BOTH)
    if norm == "batch":
        bugs |= {bug.__name__: bug for bug in OF_BATCH}
    bugs["norm_not_adapted" if adapt_norm else "norm_adapted"] = (
        norm_not_adapted if adapt_norm else norm_adapted
    )
    if adapt_norm:
        bugs["norm_saved_statistics"] = norm_saved_statistics
    planted = set()
    for name, bug in bugs.items():
        id = max((id for id in FAULTS if name.startswith(id)), key=len)
        planted.add(id)
        found = case.doctor.diagnose(bug(case).astype(dtype))
        assert (found.verdict, found.fault, found.ties) == ("fail", id, ()), f"{name}\n{found}"
    of_problem = {fault.id for fault in NORMALISED if [*fault.variants(case.problem)]}
    assert planted - {"biases_not_adapted"} == of_problem


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_no_cause_is_named_for_what_has_none(norm):
    problem = pose(norm)
    doctor, rng = Doctor(problem), np.random.default_rng(0)
    g = problem.gradient
    for i in range(20):
        for c in (
            rng.normal(size=g.size),
            rng.permutation(g),
            g + 10.0 ** rng.uniform(-4, 0) * np.linalg.norm(g) * rng.normal(size=g.size) / g.size**0.5,
            pose(norm, seed=i + 1).gradient,
        ):
            found = doctor.diagnose(c.astype("float32") if i % 2 else c)
            assert (found.verdict, found.fault) == ("fail", None), str(found)
