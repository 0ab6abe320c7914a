"""PyTorch's modules, state dicts and gradients to theta and back; and a diagnosis by ``torch.func``."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta import interop
from tests.helpers import assert_close
from tests.peers.interop_cases import TIGHT, WIDTHS, exact, some_tasks

torch = pytest.importorskip("torch")
functional_call, grad, vmap = torch.func.functional_call, torch.func.grad, torch.func.vmap
F, nn = torch.nn.functional, torch.nn

ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "LeakyReLU": nn.LeakyReLU(),
    "LeakyReLU(0.2)": nn.LeakyReLU(0.2),
    "ELU": nn.ELU(),
    "ELU(0.5)": nn.ELU(0.5),
    "Tanh": nn.Tanh(),
    "Sigmoid": nn.Sigmoid(),
    "Softplus": nn.Softplus(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "Identity": nn.Identity(),
}


# --- the example ----------------------------------------------------------------------------------


def meta_losses(net, x, y, query_x, query_y, detach=False):
    def loss(params, x, y):
        return F.mse_loss(functional_call(net, params, (x,)), y)

    def loss_after_adapting(x, y, query_x, query_y):
        params = dict(net.named_parameters())
        for _ in range(3):
            grads = grad(loss)(params, x, y)
            for name, g in grads.items():
                params[name] = params[name] - 0.1 * (g.detach() if detach else g)
        return loss(params, query_x, query_y)

    return vmap(loss_after_adapting)(x, y, query_x, query_y)


def diagnosis(net, x, y, query_x, query_y, **options):
    maml = nm.MAML(interop.model_of(net), "mse", inner_lr=0.1, inner_steps=3)
    problem = nm.Problem(maml, interop.to_theta(net), nm.TaskBatch(x, y, query_x, query_y))
    losses = meta_losses(net, x, y, query_x, query_y, **options)
    losses.mean().backward()
    return nm.diagnose(problem, interop.grad_of(net), losses={"query": losses.detach()})


def network():
    torch.manual_seed(0)
    pairs = ([nn.Linear(*pair), nn.Tanh()] for pair in itertools.pairwise(WIDTHS))
    return nn.Sequential(*list(itertools.chain(*pairs))[:-1]).double()


def tensors():
    return tuple(map(torch.from_numpy, some_tasks()))


def test_the_gradient_of_torch_func():
    net = network()
    meta_losses(net, *tensors()).mean().backward()
    assert_close(interop.grad_of(net), exact(interop.to_theta(net), some_tasks()), TIGHT)


@pytest.mark.parametrize("detach", [False, True])
def test_diagnosis(detach):
    found = diagnosis(network(), *tensors(), detach=detach)
    expected = ("fail", "first_order") if detach else ("pass", None)
    assert (found.verdict, found.fault) == expected


# --- modules, state dicts, gradients ----------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_same_function(name):
    torch.manual_seed(0)
    f = ACTIVATIONS[name]  # one module in two places
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(3, 5), f, nn.Sequential(nn.Linear(5, 5), f), nn.Linear(5, 2)
    )
    net = net.double()
    x = torch.randn(7, 3, dtype=torch.float64)
    model = interop.model_of(net)
    assert_close(model.apply(interop.to_theta(net), x), net(x).detach(), TIGHT)


@settings(max_examples=20, deadline=None)
@given(
    widths=st.lists(st.integers(1, 3), min_size=2, max_size=13),
    dtype=st.sampled_from(["float32", "float64", "bfloat16", "float16"]),
)
def test_there_and_back(widths, dtype):
    dtype = getattr(torch, dtype)
    net = nn.Sequential(*[nn.Linear(*pair, dtype=dtype) for pair in itertools.pairwise(widths)])
    theta = interop.to_theta(net)
    assert theta.dtype == ("float64" if dtype == torch.float64 else "float32")
    for params in (net.state_dict(), dict(sorted(net.state_dict().items())), list(net.parameters())):
        np.testing.assert_array_equal(interop.to_theta(params, nm.MLP(widths)), theta)
    other = nn.Sequential(*[nn.Linear(*pair, dtype=dtype) for pair in itertools.pairwise(widths)])
    other.load_state_dict(interop.from_theta(theta, like=other))
    for mine, yours in zip(other.parameters(), net.parameters(), strict=True):
        assert mine.dtype == dtype
        assert torch.equal(mine, yours)


def test_gradients():
    net, (x, y, *_) = network(), tensors()
    loss = F.mse_loss(net(x), y)
    gradients = torch.autograd.grad(loss, tuple(net.parameters()), retain_graph=True)
    loss.backward()
    np.testing.assert_array_equal(interop.to_theta(gradients), interop.grad_of(net))
    rows = x.reshape(1, -1, 2), y.reshape(1, -1, 1)
    lin = nm.Risk(interop.model_of(net), "mse").linearize(interop.to_theta(net), *rows)
    assert_close(interop.grad_of(net), lin.grad[0], TIGHT)


def test_adapted_weights():
    """φ of every task at once, both ways: npmeta's in PyTorch, PyTorch's in npmeta."""
    net, (x, *_) = network(), tensors()
    model = interop.model_of(net)
    phi = interop.to_theta(net) + np.random.default_rng(0).normal(size=(3, model.n_params))
    adapted = interop.from_theta(phi, like=net)
    assert adapted["0.weight"].shape == (3, 8, 2)
    outputs = vmap(lambda params, x: functional_call(net, params, (x,)))(adapted, x)
    assert_close(outputs.detach(), model.apply(phi, x), TIGHT)
    np.testing.assert_array_equal(interop.to_theta(adapted, model), phi)


def test_layers_in_a_module_of_your_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(torch.sin(self.body(torch.sin(self.stem(x)))))

    net, x = Net().double(), torch.randn(4, 2, dtype=torch.float64)
    model = interop.model_of(net, "sin")
    assert_close(model.apply(interop.to_theta(net), x), net(x).detach(), TIGHT)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), r"'0\.weight' of shape \(2, 1, 3, 3\)"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), r"the norms '1' \(3\) for 0 hidden layers"),
        (nn.Sequential(nn.Linear(2, 3, bias=False)), r"'0\.weight' has no bias beside it"),
        (nn.LSTM(2, 3), "cannot tell what 'weight_ih_l0' is"),
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), r"'0\.weight' and '1\.weight' are one tensor"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict(), "for 0 hidden layers"),
    ],
)
def test_not_a_network(net, message):
    with pytest.raises(ValueError, match=message):
        interop.to_theta(net)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(1, 2, 3), "npmeta has no Conv2d"),
        (nn.Dropout(), "npmeta has no Dropout"),
        (nn.GELU("tanh"), "has approximate='none'"),
        (nn.Softplus(beta=2), "has beta=1.0"),
        (nn.PReLU(), "npmeta has no PReLU"),
    ],
)
def test_no_model(module, message):
    with pytest.raises(ValueError, match=message):
        interop.model_of(nn.Sequential(nn.Linear(2, 3), module, nn.Linear(3, 1)))


# --- normalised networks --------------------------------------------------------------------------


def normalised_network(norm):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(2, 8), norm(8), nn.Tanh(), nn.Linear(8, 8), norm(8), nn.Tanh(), nn.Linear(8, 1)
    )
    for name, parameter in net.named_parameters():
        if name[0] in "14":
            nn.init.normal_(parameter, mean=0.5)
    return net.double()


NORMS = [
    lambda n: nn.BatchNorm1d(n, track_running_stats=False),
    nn.BatchNorm1d,  # in training mode, where running statistics change nothing
    nn.LayerNorm,
]


@pytest.mark.parametrize("norm", NORMS)
def test_the_same_normalised_function(norm):
    net, (x, y, *_) = normalised_network(norm), tensors()
    model, theta = interop.model_of(net), interop.to_theta(net)
    assert_close(model.apply(theta, x[0]), net(x[0]).detach(), TIGHT)
    F.mse_loss(net(x[0]), y[0]).backward()
    lin = nm.Risk(model, "mse").linearize(theta, x[:1], y[:1])
    assert_close(interop.grad_of(net), lin.grad[0], 1e-11)
    for params in (net.state_dict(), list(net.parameters()), dict(net.named_parameters())):
        np.testing.assert_array_equal(interop.to_theta(params, model), theta)
    other = normalised_network(norm)
    other.load_state_dict(interop.from_theta(2 * theta, like=other.state_dict()))
    np.testing.assert_array_equal(interop.to_theta(other), 2 * theta)
    assert interop.from_theta(np.stack([theta] * 3), like=net)["1.weight"].shape == (3, 8)


class BatchNorm1d(nn.BatchNorm1d):
    """With its scale and shift outside of PyTorch's own function."""

    def forward(self, z):
        return self.weight * F.batch_norm(z, None, None, training=True, eps=self.eps) + self.bias


class LayerNorm(nn.LayerNorm):
    def forward(self, z):
        return self.weight * F.layer_norm(z, self.normalized_shape, eps=self.eps) + self.bias


@pytest.mark.parametrize("norm", [BatchNorm1d, LayerNorm])
def test_diagnosis_of_a_normalised_network(norm):
    assert diagnosis(normalised_network(norm), *tensors()).verdict == "pass"
    assert diagnosis(normalised_network(norm), *tensors(), detach=True).fault == "first_order"


@pytest.mark.parametrize("norm", [NORMS[0], nn.LayerNorm])
def test_vmap_takes_saved_statistics_for_constants(norm):
    """Should this fail, PyTorch has been mended, and the advice of the doctor is to be changed."""
    assert diagnosis(normalised_network(norm), *tensors()).fault == "norm_saved_statistics"


def test_another_epsilon_is_named():
    """Parameters do not say which ε it is, and the gradient does."""
    net = normalised_network(lambda n: LayerNorm(n, eps=1e-6))
    with pytest.raises(ValueError, match="has eps=1e-06, and npmeta's norms have 1e-05"):
        interop.model_of(net)
    model = interop.model_of(net.state_dict(), "tanh", norm="layer")
    problem = nm.Problem(
        nm.MAML(model, "mse", inner_lr=0.1, inner_steps=3),
        interop.to_theta(net),
        nm.TaskBatch(*some_tasks()),
    )
    meta_losses(net, *tensors()).mean().backward()
    found = nm.diagnose(problem, interop.grad_of(net))
    assert (found.fault, found.factor) == ("norm_eps", 1e-6)
