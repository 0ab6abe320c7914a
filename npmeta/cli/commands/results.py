"""What a run has learned: its scores, predictions, pictures and structure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npmeta._support.files import write_atomically
from npmeta._support.output import one_line
from npmeta._support.validation import Array
from npmeta.algorithms import Scores, StructuredMAML
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.found_structure import structure_report
from npmeta.cli.commands.words import check_picture, data, say
from npmeta.cli.reports import score_json, score_table
from npmeta.cli.runs import Run
from npmeta.tasks.registry import TaskDistribution
from npmeta.training.config import Config
from npmeta.training.loop import Algorithm, evaluate
from npmeta.training.parallel import Sharded


def evaluate_run(
    folder: Path,
    *,
    n_tasks: int | None,
    steps: int | None,
    split: str | None,
    seed: int | None,
    json_file: str | None,
    data: str | None,
    workers: int = 1,
    **sizes: int | None,
) -> int:
    """Score the newest checkpoint of a run, on tasks of :data:`~npmeta.tasks.registry.SIZES`."""
    if data is not None and split is not None:
        raise ValueError("--data is scored on all that is in it; leave out --split")
    if json_file not in (None, "-") and not Path(json_file).resolve().parent.is_dir():
        raise ValueError(f"cannot write {json_file}: its folder does not exist")
    run = Run(folder)
    others = {name: size for name, size in sizes.items() if size is not None}
    config = run.config = run.config.with_values(**others)
    _check_steps(config, steps)
    tasks = config.tasks() if data is None else _tasks_on(run, data)
    split = split or "test"
    algorithm = config.algorithm(tasks.n_in, tasks.n_out)
    checkpoint = run.load()
    try:
        checkpoint.check_fit(config, algorithm)
    except ValueError:
        if "ways" not in others:
            raise
        raise ValueError(
            f"{config['algorithm']} has an output for each class, and cannot be tested with "
            f"{others['ways']} ways where it has learned others; leave out --ways"
        ) from None
    params = checkpoint.params
    with Sharded(algorithm, workers=workers) as sharded:
        scored = score(
            run, tasks, sharded, params, n_tasks=n_tasks, steps=steps, split=split, seed=seed
        )
    text = score_json(scored, run, split, data)
    status = diverged(scored, split if data is None else "new")
    if json_file == "-":
        print(text)
        return status
    # Flushed, so that it comes first if the other file is standard output too.
    where = split if data is None else one_line(Path(data).name)
    table = score_table(scored, config.loss_name, where, inner_steps=config.inner_steps)
    print(table, flush=True)
    if json_file:
        write_atomically(Path(json_file), text + "\n")
    return status


def _check_steps(config: Config, steps: int | None) -> None:
    """Raise ValueError if steps are asked for where there are none."""
    if steps is not None and not config.inner_steps:
        raise ValueError(f"{config['algorithm']} takes no inner steps; leave out --steps")


def _tasks_on(run: Run, data: str) -> Any:
    """The run's tasks on other data, all of it in the test split."""
    config = run.config
    if not config.kind.has_data:
        raise ValueError(f"a {config.task} run has no data to be replaced by --data")
    encoding = run.encoding() if config.kind.encodes else None
    return config.with_values(data=data, checksum=None, fractions=[0.0, 0.0, 1.0]).tasks(encoding)


def score(
    run: Run,
    tasks: TaskDistribution,
    algorithm: Algorithm,
    params: Mapping[str, Array],
    *,
    n_tasks: int | None = None,
    steps: int | None = None,
    split: str = "test",
    seed: int | None = None,
) -> Scores:
    """Scores on a split; what is not given is as the run's configuration has it."""
    config = run.config
    return evaluate(
        algorithm,
        params,
        tasks,
        n_tasks=config["eval_tasks"] if n_tasks is None else n_tasks,
        steps=config["eval_steps"] if steps is None else steps,
        split=split,
        seed=config["seed"] if seed is None else seed,
    )


def diverged(scored: Scores, which: str) -> int:
    """The exit status for scores, 1 if tasks have diverged, which is said."""
    counts = scored.diverged
    if counts.any():
        say(
            f"{counts.max()} of {scored.n_tasks} {which} tasks have diverged: fewer inner steps or a "
            f"smaller inner_lr may help"
        )
    return int(counts.any())


def adapt_run(folder: Path, *, support: Path, query: Path, steps: int | None, out: Path | None) -> int:
    """Predict the rows of one CSV file after adapting to those of another."""
    from npmeta.cli.predictions import predict

    run = Run(folder)
    _check_steps(run.config, steps)
    text = predict(run, support, query, steps)
    if run.config["norm"] == "batch":
        say(f"batch normalisation: each prediction depends on all rows of {query}")
    if out is None:
        data(text)
    else:
        write_atomically(out, text)
    return 0


def plot_run(folder: Path, out: Path | None) -> int:
    """Draw a run's pictures again, from its newest checkpoint."""
    run = Run(folder)
    tasks = run.config.tasks()
    algorithm = run.config.algorithm(tasks.n_in, tasks.n_out)
    params = run.params_for(algorithm)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    scored = score(run, tasks, algorithm, params)
    for path in draw(run, tasks, algorithm, params, scored, out or folder):
        print(path)
    return diverged(scored, "test")


def pictures(config: Config) -> list[str]:
    """The names of the files that :func:`draw` makes."""
    drawn = [*(["scores"] if config.inner_steps else []), config.kind.picture, "curves"]
    return [f"{name}.png" for name in drawn if name]


def draw(
    run: Run,
    tasks: TaskDistribution,
    algorithm: MetaLearner,
    params: Mapping[str, Array],
    scored: Scores,
    folder: Path,
) -> list[Path]:
    """What was learned, how the scores change with inner steps, and how it came about."""
    from npmeta.cli import plots

    config = run.config
    figures = {}
    if config.inner_steps:
        figures["scores"] = plots.scores(scored, config.loss_name)
    picture = config.kind.picture
    if picture:
        # Steps beyond those of the test may diverge where step sizes are learned, and set the scale.
        most = config["eval_steps"]
        steps = sorted({0, min(1, most), most}) if config.inner_steps else (None,)
        of_tasks = getattr(plots, picture)
        figures[picture] = of_tasks(algorithm, params, tasks, steps=steps, seed=config["seed"])
    rows = run.metrics()
    if rows:
        figures["curves"] = plots.curves(rows, config.loss_name)
    return [
        plots.save(figure, folder / f"{name}.png", follow=False) for name, figure in figures.items()
    ]


def show_structure(
    folder: Path, *, n_tasks: int | None, steps: int | None, picture: Path | None
) -> int:
    """The structure that a run has learned, and what becomes of test scores if it is hardened."""
    check_picture(picture)
    run = Run(folder)
    tasks = run.config.tasks()
    algorithm = run.config.algorithm(tasks.n_in, tasks.n_out)
    if not isinstance(algorithm, StructuredMAML):
        raise ValueError(f"{folder} is of {run.config['algorithm']}, which learns no structure")
    n_tasks = run.config["eval_tasks"] if n_tasks is None else n_tasks
    batch = tasks.sample(run.config["seed"], 0, n_tasks, split="test")
    steps = run.config["eval_steps"] if steps is None else steps
    report = structure_report(algorithm, run.params_for(algorithm), batch, steps)
    print(report)
    if picture is not None:
        from npmeta.cli import plots

        print(f"\n{plots.save(plots.structure(report), picture)}")
    tested = (report.scores, report.hard_scores)
    return int(any(scored is not None and scored.diverged.any() for scored in tested))
