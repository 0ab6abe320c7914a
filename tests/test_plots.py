"""Pictures show what they say they show."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import npmeta as nm
from npmeta.algorithms import Scores
from npmeta.cli import plots

MAML = nm.MAML(nm.MLP([1, 8, 1]), inner_lr=0.05)
THETA = {"theta": MAML.model.init(np.random.default_rng(0))}


def test_waves_are_the_predictions_on_fresh_tasks():
    tasks = nm.tasks.Sinusoid(shots=6)
    figure = plots.waves(MAML, THETA, tasks, steps=(0, 1, 10), n_tasks=2, seed=3)
    batch = tasks.sample(3, 1, 2, split="test")
    for t, ax in enumerate(figure.axes):
        lines = {line.get_label(): line for line in ax.get_lines()}
        x = lines["after 10 steps"].get_xdata()
        assert x[0] == -5
        assert x[-1] == 5
        for steps, label in ((0, "before adapting"), (1, "after 1 step"), (10, "after 10 steps")):
            phi = MAML.adapt(THETA, batch.support_x, batch.support_y, steps=steps)
            expected = MAML.model.apply(phi[t], x[:, None])[:, 0]
            np.testing.assert_allclose(lines[label].get_ydata(), expected, rtol=1e-12)
        points = lines["6 support points"]
        np.testing.assert_array_equal(points.get_xdata(), batch.support_x[t, :, 0])
        np.testing.assert_array_equal(points.get_ydata(), batch.support_y[t, :, 0])
        # The points lie on the curve that is called the wave itself.
        wave = np.interp(points.get_xdata(), x, lines["the wave itself"].get_ydata())
        np.testing.assert_allclose(wave, points.get_ydata(), atol=0.01)  # linear between 200 points


def test_scores_show_mean_and_interval():
    rng = np.random.default_rng(0)
    scored = Scores(rng.random((30, 4)), rng.random((30, 4)))
    figure = plots.scores(scored, "cross_entropy")
    assert [ax.get_ylabel() for ax in figure.axes] == ["query cross_entropy", "query accuracy"]
    for ax, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), scored.mean(name))


def test_curves_show_the_rows_of_the_metrics():
    rows = [{"iteration": i, "loss": 1.0 / i, "grad_norm": 1.0, "outer_lr": 0.1} for i in (1, 2, 3)]
    rows[2] |= {"validation_loss": 0.5, "validation_accuracy": 0.75}
    figure = plots.curves(rows, "mse")
    loss, accuracy = figure.axes
    train, validation = loss.get_lines()
    assert list(train.get_ydata()) == [1.0, 0.5, 1 / 3]
    assert list(validation.get_xdata()) == [3]
    assert list(accuracy.get_lines()[0].get_ydata()) == [0.75]
    with pytest.raises(ValueError, match="no rows"):
        plots.curves([], "mse")


def test_a_run_of_one_row_has_a_point_for_a_curve():
    row = {"iteration": 100, "loss": 2.0, "grad_norm": 1.0, "outer_lr": 0.1, "validation_loss": 1.0}
    assert [line.get_marker() for line in plots.curves([row], "mse").axes[0].get_lines()] == ["o", "o"]
    assert plots.curves([row, row], "mse").axes[0].get_lines()[0].get_marker() == "None"


@pytest.mark.parametrize(
    ("losses", "scale"), [([3.0, 0.1], "log"), ([3.0, -0.1], "linear"), ([3.0, 0.0], "linear")]
)
@pytest.mark.parametrize("of", ["loss", "validation_loss"])
def test_a_loss_that_is_not_positive_is_not_left_out(of, losses, scale):
    rows = [{"iteration": i, "loss": 1.0, "validation_loss": 1.0} for i in range(2)]
    for row, value in zip(rows, losses, strict=True):
        row[of] = value
    assert plots.curves(rows, "poisson_nll").axes[0].get_yscale() == scale
