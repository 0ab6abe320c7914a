"""Trains with every mistake of the page and draws it: ``python docs/figures/mistakes.py``.

Takes a quarter of an hour on two cores. The numbers are kept beside the pictures' script, in
``mistakes.json``, and with ``--draw`` only the pictures are made again.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import npmeta as nm
from npmeta.bilevel.optimizers import Adam
from npmeta.verification.doctor.choices import Backward, Forward, Statistics
from npmeta.verification.doctor.inner_loop import run_loop
from npmeta.verification.doctor.recipe import Recipe, gradient_by

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
import common_mistakes as wrong  # noqa: E402
import implicit_mistakes as implicit  # noqa: E402

WAVES = nm.tasks.Sinusoid(shots=5)
MODEL = nm.MLP([1, 40, 40, 1], "tanh")
ALPHA, STEPS, TASKS, OUTER_LR = 0.01, 3, 10, 1e-3
ITERATIONS, EVERY, SEEDS, TEST_TASKS = 4000, 100, 4, 200
#: Implicit MAML: pull towards θ, inner step size and steps, conjugate-gradient iterations.
IMPLICIT = (5.0, 0.01, 20, 5)

#: The mistakes of normalised networks as the doctor predicts them. Running statistics begin anew in
#: every iteration.
NORMED = nm.MLP([1, 40, 40, 1], "tanh", norm="batch")
NORMS = {
    "norm: right": Forward(),
    "norm: eval_mode": Forward(statistics=Statistics(everywhere="fresh")),
    "norm: running_statistics": Forward(
        statistics=Statistics(on_query="running", unbiased=True, kept=True)
    ),
    "norm: vmap": Backward(hessian_at="own, saved statistics"),
}

RED, YELLOW, BLUE = "#d1342f", "#f0a202", "#1d70b8"


def maml(factor=1.0, **options):
    return nm.MAML(MODEL, inner_lr=factor * ALPHA, inner_steps=STEPS, **options)


def query_loss(theta, alpha=ALPHA):
    """After the right inner loop, or one with other step sizes."""
    algorithm = nm.MAML(MODEL, inner_lr=alpha, inner_steps=STEPS)
    return float(nm.evaluate(algorithm, theta, WAVES, n_tasks=TEST_TASKS).mean()[-1])


def normed(theta, tasks, name):
    """The problem of a normalised network, and what is computed of it."""
    problem = nm.Problem(nm.MAML(NORMED, inner_lr=ALPHA, inner_steps=STEPS), theta, tasks)
    return problem, Recipe().having(NORMS[name])


def norm_loss(theta, name):
    problem, recipe = normed(theta, WAVES.sample(0, 0, TEST_TASKS, split="test"), name)
    return float(run_loop(problem, recipe.forward).query(STEPS).value.mean())


def implicit_loss(theta, proximal_once=False):
    tasks = WAVES.sample(0, 0, TEST_TASKS, split="test")
    support, query = sides(tasks)
    phi = implicit.adapted(theta, support, *IMPLICIT[:3], proximal_once=proximal_once)
    return float(query(phi).value.mean())


def sides(tasks):
    objective = maml().objective
    return (
        wrong.Losses(objective, tasks.support_x, tasks.support_y),
        wrong.Losses(objective, tasks.query_x, tasks.query_y),
    )


@np.errstate(all="ignore")  # some run away
def train(name, seed):
    """Query losses after 0, EVERY, 2 EVERY, .. outer steps by Adam; fewer where training runs away.

    A second list has those after the mistaken inner loop itself, where it is another one.
    """
    rng = np.random.default_rng(seed)
    theta = NORMED.init(rng) if name in NORMS else maml().init(rng)["theta"]
    params, optimizer = {"theta": theta}, Adam()
    if name.startswith("alpha"):
        params["inner_lr"] = np.full((1, theta.size), ALPHA)
    state = optimizer.init(params)
    total = [0.0]  # of the accumulator, for as long as the program runs
    curves = [[], []]
    for iteration in range(ITERATIONS + 1):
        theta = params["theta"]
        if not np.isfinite(theta).all():
            break
        if iteration % EVERY == 0:
            if name in NORMS:
                curves[0].append(norm_loss(theta, "norm: right"))
                if isinstance(NORMS[name], Forward) and NORMS[name] != Forward():
                    curves[1].append(norm_loss(theta, name))
            elif name.startswith("implicit"):
                curves[0].append(implicit_loss(theta))
                if name == "implicit: proximal_once":
                    curves[1].append(implicit_loss(theta, True))
            else:
                curves[0].append(query_loss(theta, params.get("inner_lr", ALPHA)))
                factor = {"uphill": -1, "summed_inner_loss": WAVES.shots}.get(name)
                if factor is not None:
                    curves[1].append(query_loss(theta, factor * ALPHA))
        tasks = WAVES.sample(seed, iteration, TASKS)
        support, query = sides(tasks)
        if name == "step_per_task":
            for one in zip(support.one_by_one(), query.one_by_one(), strict=True):
                grads = {"theta": wrong.right(params["theta"], *one, ALPHA, STEPS)}
                params, state = optimizer.update(params, grads, state, OUTER_LR)
            continue
        if name in NORMS:
            grads = {"theta": gradient_by(*normed(theta, tasks, name))}
        elif name.startswith("alpha"):
            grads = dict(maml().meta_gradient(params, tasks).grads)
            if name == "alpha: wrong":
                grads["inner_lr"] = grads["theta"][None]
        elif name.startswith("implicit"):
            function = getattr(implicit, name.split(": ")[1])
            grads = {"theta": function(theta, support, query, *IMPLICIT)}
        else:
            more = (total,) if name == "accumulator" else ()
            function = getattr(wrong, name)
            if name == "in_place":
                theta = params["theta"] = np.array(theta)
            grads = {"theta": function(theta, support, query, ALPHA, STEPS, *more)}
        params, state = optimizer.update(params, grads, state, OUTER_LR)
    return curves


# --- pictures -------------------------------------------------------------------------------------

#: Picture -> panels: title, the right one, and the mistakes with their labels.
PICTURES = {
    "formulas": [
        ("uphill inside", "right", {"uphill": "θ + α∇L"}),
        ("gradient at φ, not θ", "right", {"at_the_adapted": "first order"}),
        ("ordinary training", "right", {"ordinary_training": "∇L(θ)"}),
        ("outer step for every task", "right", {"step_per_task": "ten steps an iteration"}),
    ],
    "sets": [
        (
            "sums for means",
            "right",
            {"summed_inner_loss": "of the inner loss", "summed_over_tasks": "over tasks"},
        ),
        ("query = support", "right", {"query_is_support": "query = support"}),
        ("query of another task", "right", {"query_of_another_task": "another task's"}),
        ("initial weights overwritten", "right", {"in_place": "overwritten"}),
    ],
    "bookkeeping": [
        ("mutable default", "right", {"accumulator": "never emptied"}),
        ("inner backward() as well", "right", {"leaking": "leaked"}),
        ("a gradient of one column", "right", {"one_column": "broadcast"}),
        ("α gets θ's gradient", "alpha: right", {"alpha: wrong": "θ's gradient"}),
    ],
    "norms": [
        ("model.eval() inside", "norm: right", {"norm: eval_mode": "no statistics"}),
        ("running statistics", "norm: right", {"norm: running_statistics": "of other tasks"}),
        ("vmap of batch_norm", "norm: right", {"norm: vmap": "saved statistics"}),
    ],
    "implicit": [
        ("unscaled residual", "implicit: right", {"implicit: unscaled_residual": "r − Ap"}),
        ("other damping", "implicit: right", {"implicit: other_damping": "2I + H/(λ+10)"}),
        ("proximal term once", "implicit: right", {"implicit: proximal_once": "once"}),
    ],
}


def draw(results, panels, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(panels), 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for ax, (title, good, mistakes) in zip(axes, panels, strict=True):
        runs(ax, [run[0] for run in results[good]], BLUE, "-", "right")
        styles = ((RED, "-"), (YELLOW, "--"))
        for (name, label), (colour, line) in zip(mistakes.items(), styles, strict=False):
            runs(ax, [run[0] for run in results[name]], colour, line, label)
            if results[name][0][1]:
                runs(ax, [run[1] for run in results[name]], colour, ":", "  in its own inner loop")
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_yscale("log")
        ax.set_ylim(0.15, 25)
        ax.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
        ax.set_yticks([], minor=True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("iterations")
        ax.legend(frameon=False, fontsize=8, loc="upper right")
    axes[0].set_ylabel(f"query mse after {'adapting' if 'implicit' in str(path) else '3 steps'}")
    figure.savefig(path, dpi=100)


def runs(ax, curves, colour, line, label):
    """Every seed as a thin line, and the median of those that have got as far."""
    longest = max(map(len, curves))
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve
        ax.plot(EVERY * np.arange(len(curve)), curve, line, color=colour, lw=0.6, alpha=0.45)
    x = EVERY * np.arange(longest)
    ax.plot(x, np.nanmedian(table, axis=0), line, color=colour, lw=1.9, label=label)


def main():
    numbers = HERE / "mistakes.json"
    if "--draw" not in sys.argv:
        names = {n for panels in PICTURES.values() for _, good, bad in panels for n in (good, *bad)}
        jobs = [(name, seed) for name in sorted(names) for seed in range(SEEDS)]
        with ProcessPoolExecutor(2) as pool:
            found = list(pool.map(train, *zip(*jobs, strict=True)))
        results = {name: [] for name, _ in jobs}
        for (name, _), curves in zip(jobs, found, strict=True):
            results[name].append([[float(f"{v:.4g}") for v in curve] for curve in curves])
        numbers.write_text(json.dumps(results) + "\n", encoding="utf-8")
    results = json.loads(numbers.read_text(encoding="utf-8"))
    for name, panels in PICTURES.items():
        draw(results, panels, HERE.parent / "_static" / f"mistakes_{name}.png")


if __name__ == "__main__":
    main()
