"""The baselines do what they are compared for, and nothing else."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import Joint, Scratch, SineOracle
from npmeta.training.config import Config
from tests.helpers import assert_close, problem


@pytest.mark.parametrize("weights", ["dense", "factored"])
def test_joint_training_descends_on_all_rows(weights):
    p = problem("mse")
    x = np.concatenate([p.tasks.support_x, p.tasks.query_x], axis=1)
    y = np.concatenate([p.tasks.support_y, p.tasks.query_y], axis=1)
    lin = p.risk.linearize(p.theta, x, y)
    out = Joint(p.model, "mse", 0.1, 2, weights=weights).meta_gradient(p.theta, p.tasks)
    assert_close(out.grad, lin.grad.mean(0), 1e-14)
    assert_close(out.task_loss, lin.value, 1e-14)


@pytest.mark.parametrize("baseline", [Joint, Scratch])
def test_they_adapt_as_maml_does(baseline):
    p = problem("mse")
    ours, maml = (make(p.model, "mse", 0.1, 2) for make in (baseline, nm.MAML))
    np.testing.assert_array_equal(
        ours.evaluate(p.theta, p.tasks, 3).loss, maml.evaluate(p.theta, p.tasks, 3).loss
    )


def test_scratch_learns_nothing_from_tasks():
    p = problem("mse")
    scratch = Scratch(p.model, "mse", 0.1, 2)
    out = scratch.meta_gradient(p.theta, p.tasks)
    assert not out.grad.any()
    np.testing.assert_allclose(
        out.task_loss, scratch.evaluate(p.theta, p.tasks).loss[:, -1], rtol=1e-13
    )


@pytest.mark.parametrize("frequency", [1.0, 2.5])
def test_the_oracle_is_exact_without_noise(frequency):
    waves = nm.tasks.Sinusoid(shots=2, queries=7, frequency=(frequency, frequency))
    scores = nm.evaluate(SineOracle(frequency), np.zeros(0), waves, n_tasks=20)
    assert scores.loss.shape == (20, 1)
    # The squared rounding error, times the condition of two points that may be near.
    assert scores.loss.max() < 1e-15


def test_the_oracle_fits_best_with_noise():
    waves = nm.tasks.Sinusoid(shots=400, queries=400, noise=0.5)
    # The noise of the targets is left, and a parameter each for amplitude and phase of 400 points.
    assert nm.evaluate(SineOracle(), np.zeros(0), waves, n_tasks=50).mean()[0] == pytest.approx(
        0.25 * (1 + 2 / 400), rel=0.03
    )


def test_one_point_is_met_by_the_smallest_wave():
    x, y = np.full((1, 1, 1), 0.5), np.full((1, 1, 1), 2.0)
    at = np.array([[[0.5], [0.5 + np.pi / 2]]])
    np.testing.assert_allclose(SineOracle().predict(np.zeros(0), x, y, at)[0, :, 0], [2, 0], atol=1e-14)


def test_options_make_them():
    def made(name, **values):
        return Config("sinusoid", {"algorithm": name, **values}).algorithm(1, 1)

    joint = made("joint", inner_lr=[0.1, 0.2, 0.3], inner_weight_decay=0.5)
    assert (joint.inner_lr.tolist(), joint.inner_weight_decay) == ([0.1, 0.2, 0.3], 0.5)
    assert isinstance(made("scratch"), Scratch)
    assert made("oracle", frequency=[2.0, 2.0]).frequency == 2.0
    with pytest.raises(ValueError, match=r"waves of one frequency, not of a range: got 1.0 to 2.0"):
        made("oracle", frequency=[1.0, 2.0])
    with pytest.raises(ValueError, match="oracle cannot be trained on omniglot; it is for sinusoid"):
        Config("omniglot", {"algorithm": "oracle"})
    with pytest.raises(ValueError, match="those of cross_entropy"):
        SineOracle(loss="cross_entropy")
