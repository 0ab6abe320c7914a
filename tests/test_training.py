"""Meta-training: it learns, goes on where it stopped, and stops where it must."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.bilevel import optimizers
from npmeta.training.loop import NonFiniteError
from npmeta.training.parallel import Sharded


def small_maml(**options):
    return nm.MAML(nm.MLP([1, 16, 1], activation="tanh"), inner_lr=0.05, **options)


def last(steps):
    return list(steps)[-1]


TASKS = nm.tasks.Sinusoid(shots=5, queries=5)


def test_training_lowers_the_loss_on_new_tasks():
    maml = small_maml()
    params = maml.init(np.random.default_rng(0))
    before = nm.evaluate(maml, params, TASKS, n_tasks=100).mean()
    step = last(nm.meta_train(maml, params, TASKS, iterations=300, outer_lr=1e-2))
    after = nm.evaluate(maml, step.params, TASKS, n_tasks=100).mean()
    assert step.iteration == 300
    assert after[-1] < 0.8 * before[-1]
    assert after[1] < after[0]  # and adapting helps


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("learned", [False, True])
def test_going_on_is_bit_for_bit_not_having_stopped(name, learned):
    maml = small_maml(learn_inner_lr=learned)
    params = maml.init(np.random.default_rng(0), np.float32)
    options = {
        "optimizer": optimizers.get(name),
        "outer_lr": 1e-3,
        "schedule": optimizers.cosine(20),
        "clip": 1.0,
        "meta_batch": 4,
    }
    whole = last(nm.meta_train(maml, params, TASKS, iterations=20, **options))
    half = last(nm.meta_train(maml, params, TASKS, iterations=9, **options))
    rest = last(
        nm.meta_train(
            maml, half.params, TASKS, iterations=20, state=half.state, start=half.iteration, **options
        )
    )
    assert set(rest.params) == ({"theta", "inner_lr"} if learned else {"theta"})
    for name in whole.params:
        assert whole.params[name].dtype == np.float32
        assert (whole.params[name] == rest.params[name]).all()


def test_the_schedule_and_the_clipping_are_used():
    maml = small_maml()
    params = maml.init(np.random.default_rng(0))
    options = {"optimizer": optimizers.Sgd(), "outer_lr": 0.1, "iterations": 2}
    steps = list(
        nm.meta_train(maml, params, TASKS, schedule=optimizers.step(1, 0.5), clip=0.01, **options)
    )
    assert [step.lr for step in steps] == [0.1, 0.05]
    moved = np.linalg.norm(steps[1].params["theta"] - steps[0].params["theta"])
    assert steps[1].grad_norm > 0.01
    np.testing.assert_allclose(moved, 0.05 * 0.01, rtol=1e-9)  # differences of numbers of order 1


def test_a_loss_that_is_not_finite_stops_before_the_parameters_are_touched():
    class Broken(nm.tasks.Sinusoid):
        def sample(self, seed, iteration, n_tasks, *, start=0, split="train"):
            tasks = super().sample(seed, iteration, n_tasks, start=start, split=split)
            if iteration == 3:
                tasks.query_y[2] = 1e200  # its square overflows
            return tasks

    maml = small_maml()
    params = maml.init(np.random.default_rng(0))
    steps = nm.meta_train(maml, params, Broken(shots=5), iterations=10, meta_batch=4)
    seen = []
    with pytest.raises(NonFiniteError, match="loss of task 2 in iteration 3 is inf; try") as caught:
        seen.extend(steps)
    assert [step.iteration for step in seen] == [1, 2, 3]
    assert (caught.value.iteration, caught.value.task) == (3, 2)


def test_evaluation_does_not_depend_on_how_the_tasks_are_batched(monkeypatch):
    maml = small_maml()
    params = maml.init(np.random.default_rng(0))
    whole = nm.evaluate(maml, params, TASKS, n_tasks=23, steps=2)
    monkeypatch.setattr("npmeta.training.loop.EVALUATION_BATCH", 5)
    parts = nm.evaluate(maml, params, TASKS, n_tasks=23, steps=2)
    assert whole.loss.shape == parts.loss.shape == (23, 3)
    # Products over fewer rows may be summed in another order.
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-12)


def test_draws_of_one_task_count_once(tmp_path):
    """The interval rests on the tasks of a table, however often their rows are drawn."""
    rng = np.random.default_rng(0)
    lines = [f"t{i % 8},{x},{np.sin(x + i % 8)}" for i, x in enumerate(rng.uniform(-3, 3, size=96))]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["task,x,target", *lines]))
    table = nm.tasks.Table(path, shots=3, queries=3, fractions=(0.25, 0.25, 0.5))
    maml = small_maml()
    params = maml.init(np.random.default_rng(0))
    scores = nm.evaluate(maml, params, table, n_tasks=200, steps=1)
    drawn = np.array(table.names(0, 0, 200, split="test"))
    assert scores.loss.shape == (200, 2)
    assert scores.n_tasks == len(set(drawn)) == 4
    means = np.stack([scores.loss[drawn == name].mean(0) for name in sorted(set(drawn))])
    np.testing.assert_allclose(scores.mean(), means.mean(0), rtol=1e-14)
    # Student's t of three degrees of freedom, from a table.
    np.testing.assert_allclose(
        scores.interval(), 3.182446305284263 * means.std(0, ddof=1) / 2, rtol=1e-12
    )
    with Sharded(maml, 3) as sharded:
        found = nm.evaluate(sharded, params, table, n_tasks=200, steps=1)
    np.testing.assert_array_equal(found.interval(), scores.interval())
    # As if all were independent it would shrink with the number of draws.
    more = nm.evaluate(maml, params, table, n_tasks=800, steps=1)
    assert (more.interval() > 0.8 * scores.interval()).all()
    waves = nm.evaluate(maml, params, TASKS, n_tasks=4)
    assert waves.n_tasks == 4
    assert waves.names is None


def test_splits_and_seeds_give_other_tasks():
    maml = small_maml()
    params = maml.init(np.random.default_rng(0))
    scores = {
        (split, seed): nm.evaluate(
            maml, params, TASKS, n_tasks=3, split=split, seed=seed
        ).loss.tobytes()
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    }
    assert len(set(scores.values())) == 6
    with pytest.raises(ValueError, match="n_tasks must be a whole number of at least 1"):
        nm.evaluate(maml, params, TASKS, n_tasks=0)
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        nm.evaluate(maml, params, TASKS, split="valid")


@pytest.mark.parametrize("kind", [float, np.float64])
def test_numpys_numbers_leave_float32_alone(kind):
    maml = nm.MAML(nm.MLP([1, 4, 1], nm.activations.leaky_relu(kind(0.2))), inner_lr=kind(0.05))
    params = maml.init(np.random.default_rng(0), np.float32)
    options = {"outer_lr": kind(1e-3), "clip": kind(0.1), "schedule": lambda i: kind(0.5)}
    step = last(nm.meta_train(maml, params, TASKS, iterations=2, **options))
    assert step.params["theta"].dtype == np.float32
    assert all(a.dtype == np.float32 for name, a in step.state.items() if name != "count")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": -1.0}, "clip must be positive and finite, got -1"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"outer_lr": -1e-3}, r"outer_lr must be positive and finite, got -0\.001"),
        ({"outer_lr": float("nan")}, "outer_lr must be positive and finite, got nan"),
        ({"meta_batch": 0}, "meta_batch must be a whole number of at least 1"),
        ({"start": -1}, "start must be a whole number of at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_first_step(options, message):
    maml = small_maml()
    with pytest.raises(ValueError, match=message):
        nm.meta_train(maml, maml.init(np.random.default_rng(0)), TASKS, iterations=1, **options)


def test_what_is_no_task_distribution_is_refused_before_the_first_step():
    maml = small_maml()
    batch, theta = TASKS.sample(0, 0, 2), maml.model.init(np.random.default_rng(0))
    for wrong in (batch, theta):
        with pytest.raises(
            ValueError, match="must be a task distribution.* got " + type(wrong).__name__
        ):
            nm.meta_train(maml, theta, wrong, iterations=1)
        with pytest.raises(ValueError, match="must be a task distribution"):
            nm.evaluate(maml, theta, wrong)


def test_tasks_before_parameters_are_told_apart():
    maml = small_maml()
    theta = maml.model.init(0)
    for swapped in (
        lambda: nm.meta_train(maml, TASKS, theta, iterations=1),
        lambda: nm.evaluate(maml, TASKS, theta),
        lambda: maml.meta_gradient(TASKS.sample(0, 0, 2), theta),
    ):
        with pytest.raises(ValueError, match="meta-parameters come before tasks, got tasks first"):
            swapped()


def test_theta_alone_will_do():
    maml = small_maml()
    theta = maml.model.init(np.random.default_rng(0))
    step = last(nm.meta_train(maml, theta, TASKS, iterations=2))
    assert set(step.params) == {"theta"}
    assert nm.evaluate(maml, theta, TASKS, n_tasks=2).loss.shape == (2, 2)


def test_parameters_that_a_step_makes_infinite_are_never_yielded():
    maml = small_maml()
    theta = maml.model.init(np.random.default_rng(0))
    tall = nm.tasks.Sinusoid(amplitude=(1e3, 1e3))  # gradients well above 2
    steps = nm.meta_train(maml, theta, tall, iterations=3, outer_lr=1e308, optimizer=optimizers.Sgd())
    with pytest.raises(NonFiniteError, match="theta after the outer step in iteration 0 is inf"):
        next(steps)


def test_a_gradient_whose_square_overflows_does_not_freeze_adam_for_good():
    class Spike:
        def meta_gradient(self, params, tasks):
            return nm.MetaGradient(1.0, {"theta": np.full(2, 1e20, np.float32)}, np.ones(1), "exact")

    with pytest.raises(NonFiniteError, match="v/theta after the outer step"):
        next(nm.meta_train(Spike(), np.zeros(2, np.float32), TASKS, iterations=1))
