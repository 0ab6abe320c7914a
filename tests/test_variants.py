"""The names of MAML with other step sizes mean what they say."""

import numpy as np
import pytest

from npmeta import MAML
from npmeta.algorithms import MetaSGD, anil, boil, fomaml, lslr
from npmeta.training.config import Config
from tests.helpers import assert_close, problem


def test_fomaml_is_the_query_gradient_where_the_inner_loop_ends():
    p = problem("mse")
    maml = fomaml(p.model, "mse", 0.1, 2)
    phi = maml.adapt(p.theta, *p.support)
    expected = p.risk.linearize(phi, *p.query).grad.mean(0)
    assert_close(maml.meta_gradient(p.theta, p.tasks).grad, expected, 1e-14)


@pytest.mark.parametrize(
    ("make", "moving"), [(anil, [False, False, True]), (boil, [True, True, False])]
)
def test_the_inner_loop_adapts_head_or_body_and_the_outer_loop_all(make, moving):
    p = problem("mse")
    maml = make(p.model, "mse", 0.1, 2)
    phi = p.model.unpack(maml.adapt(p.theta, *p.support))
    for (W, b), (W_0, b_0), moves in zip(phi, p.model.unpack(p.theta), moving, strict=True):
        assert (W != W_0).all() == moves
        assert (b != b_0).all() == moves
    assert (maml.meta_gradient(p.theta, p.tasks).grad != 0).all()


def test_lslr_learns_a_step_size_for_every_layer_and_step():
    p = problem("mse")
    maml = lslr(p.model, "mse", 0.1, 4)
    params = maml.init(np.random.default_rng(0))
    np.testing.assert_array_equal(params["inner_lr"], np.full((4, 3), 0.1))
    assert maml.meta_gradient(params, p.tasks).grads["inner_lr"].shape == (4, 3)


def test_meta_sgd_draws_a_step_size_for_every_parameter():
    p = problem("mse")
    meta_sgd = MetaSGD(p.model, "mse", inner_lr_range=(0.2, 0.3))
    params = meta_sgd.init(np.random.default_rng(0))
    alpha = params["inner_lr"]
    assert alpha.shape == (1, p.model.n_params)
    assert 0.2 <= alpha.min() < 0.22 < 0.28 < alpha.max() <= 0.3
    # θ is that of any other algorithm with the seed.
    np.testing.assert_array_equal(params["theta"], p.model.init(np.random.default_rng(0)))
    # One step: φ = θ − α ∘ ∇L^S(θ).
    phi = meta_sgd.adapt(params, *p.support)
    grad = p.risk.linearize(params["theta"], *p.support).grad
    assert_close(phi, params["theta"] - alpha * grad, 1e-15)
    with pytest.raises(ValueError, match=r"inner_lr_range must be a range .low, high., got .0.3, 0.2."):
        MetaSGD(p.model, inner_lr_range=(0.3, 0.2))


def test_options_make_them():
    def made(name, **values):
        return Config("sinusoid", {"algorithm": name, "hidden": [5], **values}).algorithm(1, 1)

    assert made("fomaml").first_order
    assert made("fomaml", inner_lr=[0.1, 0.2], inner_lr_per="layer").inner_lr.tolist() == [[0.1, 0.2]]
    assert made("anil", inner_lr=0.3).inner_lr.tolist() == [[0.0, 0.3]]
    assert made("boil", inner_lr=0.3, inner_weight_decay=0.5).inner_weight_decay == 0.5
    assert made("lslr", inner_steps=2, first_order=True).first_order
    assert made("meta-sgd", inner_lr_range=[0.1, 0.2]).inner_lr_range == (0.1, 0.2)
    assert isinstance(made("anil"), MAML)
    with pytest.raises(ValueError, match="anil has one inner_lr, got 2 values"):
        made("anil", inner_lr=[0.1, 0.2])
    with pytest.raises(ValueError, match="anil has no option 'learn_inner_lr'"):
        made("anil", learn_inner_lr=True)
