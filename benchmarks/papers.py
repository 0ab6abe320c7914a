"""The tables that :mod:`benchmarks.tables` makes: settings, published numbers, and how sure they are.

A row is a run by the options of ``npmeta train``, which has every default that is not given here. What
a paper leaves open, or what is not at hand, stands beside its number as a doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from npmeta.tasks.registry import PRESETS

__all__ = ["TABLES", "Published", "Row", "Table"]

#: Mean and half-width of the interval (None where the paper has none).
Published: TypeAlias = tuple[float, float | None]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes
    ----------
    label : str
    values : mapping
        Options of the run, "algorithm" among them.
    published : mapping
        By inner steps at test time. Those of rows without inner steps stand at the table's last.
    doubt : str
        What is not certain about the published number, or of its setting.
    why : str
        Why it is better than others, where it is.
    """

    label: str
    values: Mapping[str, Any]
    published: Mapping[int, Published] = field(default_factory=dict)
    doubt: str = ""
    why: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper, with rows of our own below.

    Attributes
    ----------
    title, source : str
    task : str
        "sinusoid" or "omniglot".
    rows : mapping
        By the name of the folder that has a row's runs.
    steps : tuple of int
        Inner steps at test time; a column each.
    note : str
        In what the runs differ from the paper's.
    test : mapping
        Options of the test tasks that are not those of training.
    grid : int
        Query points of a test task on a grid over the inputs; 0 for random ones.
    """

    title: str
    source: str
    task: str
    rows: Mapping[str, Row]
    steps: tuple[int, ...]
    note: str = ""
    test: Mapping[str, Any] = field(default_factory=dict)
    grid: int = 0

    @property
    def measure(self) -> str:
        return "loss" if self.task == "sinusoid" else "accuracy"


# --- sine waves -------------------------------------------------------------------------------------

_SINE: dict[str, Any] = PRESETS["paper"]["sinusoid"]


def _sine(algorithm: str, **values: Any) -> dict[str, Any]:
    """Finn et al.'s setting with another algorithm, which keeps its own inner loop."""
    common = {name: value for name, value in _SINE.items() if not name.startswith("inner_")}
    return {**common, "algorithm": algorithm, **values}


_CONTEXT = "A wave is two numbers, and a context can be just these; the network need not change"

_FINN = {1: (0.67, None), 5: (0.38, None), 10: (0.35, None)}
_PRETRAINED = {1: (2.41, None), 5: (2.23, None), 10: (2.19, None)}
_TWO_SIZES = "the paper says an inner step size of 0.01, its code has 0.001"

_SINUSOID_MAML = Table(
    "Sine waves, 5 shots: mean squared error",
    "Finn et al. 2017, Table 2",
    "sinusoid",
    {
        "maml-0.01": Row("MAML, α = 0.01", _sine("maml", inner_lr=0.01), _FINN, _TWO_SIZES),
        "maml-0.001": Row("MAML, α = 0.001", _sine("maml", inner_lr=0.001), _FINN, _TWO_SIZES),
        "joint-0.01": Row(
            "pretrained, α = 0.01",
            _sine("joint", inner_lr=0.01),
            _PRETRAINED,
            "the paper tunes the step size of fine-tuning and does not give it",
        ),
        "joint-0.001": Row(
            "pretrained, α = 0.001",
            _sine("joint", inner_lr=0.001),
            _PRETRAINED,
            "the paper tunes the step size of fine-tuning and does not give it",
        ),
        "scratch": Row("from scratch, α = 0.01", _sine("scratch", inner_lr=0.01, iterations=1)),
        "oracle": Row("oracle", _sine("oracle", iterations=1)),
        "fomaml": Row("FOMAML, α = 0.01", _sine("fomaml")),
        "anil": Row("ANIL, α = 0.01", _sine("anil")),
        "boil": Row("BOIL, α = 0.01", _sine("boil")),
        "warp": Row("T-net, α = 0.01", _sine("warp")),
        "meta-sgd": Row("Meta-SGD", _sine("meta-sgd")),
        "lslr": Row("learned step sizes", _sine("lslr")),
        "maml++": Row("MAML++", _sine("maml++")),
        "structured": Row("learned structure, adapted", _sine("structured")),
        "structured-frozen": Row(
            "learned structure, in the outer loop alone", _sine("structured", adapt_structure=False)
        ),
        "reptile": Row("Reptile", _sine("reptile")),
        "imaml": Row("iMAML", _sine("imaml", activation="tanh", iterations=3_000)),
        "cavia": Row("CAVIA, 5 context parameters", _sine("cavia"), why=_CONTEXT),
        "ridge": Row("ridge head", _sine("ridge")),
    },
    (1, 5, 10),
    "Trained with ten shots, tested with five; 600 tasks. Rows without a published "
    "number have npmeta's defaults, not tuned; iMAML fewer iterations, of a fifth of a second each.",
    {"shots": 5},
)

_READ = {"iterations": 10_000}

_SINUSOID_10 = Table(
    "Sine waves, trained and tested with 10 shots: mean squared error",
    "npmeta's own: what reads a task, or learns how to step",
    "sinusoid",
    {
        "maml": Row("MAML, five steps, α = 0.01", _sine("maml", inner_lr=0.01, inner_steps=5, **_READ)),
        "lstm": Row("meta-learner LSTM, inner gradients constant", _sine("lstm", **_READ)),
        "lstm-exact": Row("meta-learner LSTM, exact", _sine("lstm", first_order=False, **_READ)),
        "ridge": Row("ridge head", _sine("ridge", **_READ)),
        "mann": Row("MANN", _sine("mann", **_READ)),
        "snail": Row("SNAIL", _sine("snail", outer_lr=3e-3, **_READ)),
    },
    (5, 10),
    "10,000 iterations, npmeta's defaults; 600 test tasks.",
)

_LI = {"shots": 5, "meta_batch": 4, "iterations": 60_000}

_META_SGD = Table(
    "Sine waves, trained and tested with 5 shots: mean squared error",
    "Li et al. 2017, Table 1, read in a secondary source",
    "sinusoid",
    {
        "meta-sgd": Row(
            "Meta-SGD, α from U[0.005, 0.1]",
            _sine("meta-sgd", inner_lr_range=[0.005, 0.1], **_LI),
            {1: (0.90, 0.16)},
            "the number of test tasks is not known, and we clip the meta-gradient at norm 10",
            "With a step size for every parameter the one step there is goes where it is of use",
        ),
        "maml": Row(
            "MAML, α = 0.01",
            _sine("maml", inner_lr=0.01, **_LI),
            {1: (1.13, 0.18)},
            "the step size of their MAML is not known",
        ),
    },
    (1,),
    "T = 4, 60,000 iterations, one step; 600 test tasks.",
)

_CAVIA_DOUBT = (
    "quoted from memory; the setting is that of the authors' code, but for its initial weights"
)
_CAVIA_SIZES = (
    _CAVIA_DOUBT + ". Of MAML's step size that code says two things: 0.1 where it tells how to run it, "
    "0.01 in its default configuration"
)

_CAVIA = Table(
    "Sine waves, 10 shots, error on a grid of 100 points: mean squared error",
    "Zintgraf et al. 2019, Table 1, quoted from memory",
    "sinusoid",
    {
        **{
            f"cavia-{n}": Row(
                f"CAVIA, {n} context parameters, α = 1",
                _sine("cavia", n_context=n, inner_lr=1.0, iterations=50_000),
                {1: (0.2, None)},
                _CAVIA_DOUBT,
                _CONTEXT,
            )
            for n in (2, 3, 5)
        },
        **{
            f"maml-{alpha:g}": Row(
                f"MAML, α = {alpha:g}",
                _sine("maml", inner_lr=alpha, iterations=50_000),
                {1: (0.33, None)},
                _CAVIA_SIZES,
            )
            for alpha in (0.01, 0.1)
        },
    },
    (1,),
    "T = 25, 50,000 iterations, one step; 600 test tasks where they have 100.",
    grid=100,
)

# --- drawings ---------------------------------------------------------------------------------------

_HELD_OUT = (
    "Only the background set, its alphabets divided 75 : 5 : 20 among training, validation and test: "
    "no character of a test alphabet was seen in training. The papers hold out characters of all 50 "
    "alphabets. 600 test tasks."
)


#: What a network without convolutions needs most: drawings of one size, in one place.
_ALIGNED = {"align": True}
_VARIED = {"align": True, "distort": 0.15}


#: The meta-learner LSTM moves every weight of every task by itself: seconds for an iteration of MAML's
#: network, so it has a small one.
_SMALL = {"hidden": [64], "meta_batch": 8, "iterations": 1_000}
_CONVOLUTIONS = "quoted from memory; theirs has a convolutional embedding, and other test characters"


def _omniglot(shots: int, maml: Published, mann: Published, snail: Published) -> Table:
    """MAML without convolutions as published; the others with npmeta's defaults, and most with its
    network."""
    paper = {**PRESETS["paper"]["omniglot"], "shots": shots, "queries": shots, "split_by": "alphabet"}

    def stepped(algorithm: str, **values: Any) -> dict[str, Any]:
        common = {name: value for name, value in paper.items() if not name.startswith("inner_")}
        return {**common, "algorithm": algorithm, "iterations": 20_000, **values}

    def compared(algorithm: str, **values: Any) -> dict[str, Any]:
        own = {"shots": shots, "split_by": "alphabet", "schedule": "cosine", "iterations": 10_000}
        return {"algorithm": algorithm, **own, **values}

    # With a constant rate the loss rises again after some 35,000 iterations with five shots.
    ours = stepped("maml", inner_lr=2.0, schedule="cosine")
    # Twenty classes at once, of one shot each, as Snell et al. 2017 train with more classes than they
    # test with: what tells twenty apart tells five.
    twenty = {"ways": 20, "shots": 1, "queries": 4, "meta_batch": 16}
    wide = {"hidden": [512, 512], "embedding": 128}
    return Table(
        f"Omniglot, 5-way {shots}-shot, without convolutions: accuracy %",
        "Finn et al. 2017, Table 1; MANN: Santoro et al. 2016; SNAIL: Mishra et al. 2018, Table 1",
        "omniglot",
        {
            "maml": Row(
                "MAML, batch normalisation",
                {"algorithm": "maml", **paper},
                {3: maml},
                "α = 0.4 there is for a loss divided by shots, 2.0 here for the mean over all rows; "
                "their test characters are others",
            ),
            "fomaml": Row("FOMAML", stepped("fomaml", inner_lr=2.0)),
            "anil": Row("ANIL", stepped("anil", inner_lr=2.0)),
            "boil": Row("BOIL", stepped("boil", inner_lr=2.0)),
            "warp": Row("T-net", stepped("warp", norm="none")),
            "meta-sgd": Row("Meta-SGD", stepped("meta-sgd")),
            "lslr": Row("learned step sizes, five steps", stepped("lslr")),
            "maml++": Row("MAML++, five steps", stepped("maml++")),
            "reptile": Row("Reptile", stepped("reptile")),
            "cavia": Row("CAVIA, 64 context parameters", stepped("cavia", norm="none")),
            "matching": Row("matching network", compared("matching")),
            "prototypical": Row("prototypical network", compared("prototypical")),
            "prototypical-wide": Row(
                "prototypical network, 784-512-512-128", compared("prototypical", **wide)
            ),
            "prototypical-20": Row(
                "the same, trained with 20 ways", compared("prototypical", **wide, **twenty)
            ),
            "siamese": Row("siamese network", compared("siamese")),
            "relation": Row("relation network", compared("relation")),
            "ridge": Row("ridge head", compared("ridge")),
            "mann": Row("MANN", compared("mann"), {3: mann}, "their test characters are others"),
            "snail": Row("SNAIL", compared("snail"), {3: snail}, _CONVOLUTIONS),
            "lstm": Row("meta-learner LSTM, 784-64", compared("lstm", **_SMALL)),
            "pixels": Row("raw pixels", compared("pixels", iterations=1)),
            "joint": Row("joint training", stepped("joint")),
            "scratch": Row("from scratch", stepped("scratch", inner_lr=0.4, iterations=1)),
            "aligned-pixels": Row("aligned: raw pixels", compared("pixels", iterations=1, **_ALIGNED)),
            "aligned-maml": Row("aligned: MAML", {**ours, **_ALIGNED}),
            "aligned-prototypical": Row(
                "aligned: prototypical network", compared("prototypical", **_ALIGNED)
            ),
            "aligned-mann": Row("aligned: MANN", compared("mann", **_ALIGNED)),
            "aligned-snail": Row("aligned: SNAIL", compared("snail", **_ALIGNED)),
            "aligned-lstm": Row(
                "aligned: meta-learner LSTM, 784-64", compared("lstm", **_SMALL, **_ALIGNED)
            ),
            "distorted-maml": Row("aligned, distorted: MAML", {**ours, **_VARIED}),
            "distorted-ridge": Row(
                "aligned, distorted: ridge head, 784-512-512-128",
                compared("ridge", **wide, **_VARIED),
            ),
            "distorted-prototypical-20": Row(
                "aligned, distorted: prototypical network, 784-512-512-128, trained with 20 ways",
                compared("prototypical", **wide, **twenty, **_VARIED),
                why="Aligned drawings are free of place and size, for which a network without "
                "convolutions has no eye; twenty classes at once and distortions leave less to be "
                "learned by heart; and class means need no gradient step that a few could mislead",
            ),
        },
        (1, 3),
        f"{_HELD_OUT} Below MAML: npmeta's defaults, not tuned but for SNAIL's sizes. What "
        "takes inner steps has MAML's network and 20,000 iterations, but the LSTM what its label says; "
        "from matching on to SNAIL 10,000 iterations with a cosine schedule and no normalisation; "
        "aligned MAML has that schedule too. iMAML is left out: "
        "an iteration takes seconds. Aligned: each drawing brought to one size and place; distorted: "
        "and in training each under a random linear map.",
        test={"ways": 5, "shots": shots},
    )


_PIXELS = Table(
    "Omniglot, cosine matching of raw pixels: accuracy %",
    "Vinyals et al. 2016, Table 1",
    "omniglot",
    {
        f"{ways}w{shots}s": Row(
            f"{ways}-way {shots}-shot",
            {"algorithm": "pixels", "ways": ways, "shots": shots, "split_by": "alphabet"},
            {0: (accuracy, None)},
            "their test characters are others, and how their drawings were scaled is not known",
        )
        for ways, shots, accuracy in ((5, 1, 41.7), (5, 5, 63.2), (20, 1, 26.7), (20, 5, 42.6))
    },
    (0,),
    f"{_HELD_OUT} Nothing is trained.",
)

#: By the name on the command line.
TABLES: dict[str, Table] = {
    "sinusoid-maml": _SINUSOID_MAML,
    "sinusoid-10": _SINUSOID_10,
    "meta-sgd": _META_SGD,
    "cavia": _CAVIA,
    "omniglot-5w1s": _omniglot(1, (89.7, 1.1), (82.8, None), (99.07, 0.16)),
    "omniglot-5w5s": _omniglot(5, (97.5, 0.6), (94.9, None), (99.78, 0.09)),
    "pixels": _PIXELS,
}
