"""The golden cases: one family for everything that an implementation could get wrong.

The first case is the design in which no two mistakes make the same gradient: T = 3, K = 5, Q = 7,
11 outputs, S = 3, α = 0.1, three different layers of which one is square, a smooth nonlinear network.
All others of MAML change one thing about it. A new case is an entry in :data:`SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from npmeta._support.validation import Array
from npmeta.network.activations import RELU, SOFTPLUS, Activation, leaky_relu
from npmeta.network.structure import Structure
from npmeta.verification.golden.settings import Setting

#: To be raised with every change of a setting or its numbers. Another case, or another mistake among
#: the wrong answers, changes nothing that is there.
SUITE_VERSION = 1


def _family(family: str, **shared: object) -> Callable[..., Setting]:
    def setting(name: str, about: str, **own: object) -> Setting:
        return Setting(family, name, about, **{**shared, **own})  # type: ignore[arg-type]  # fields, by name

    return setting


def _activations() -> Iterator[Setting]:
    case = _family("activation")
    yield case("identity", "a linear network", activation="identity")
    yield case("relu", "f'' = 0 away from the kink", activation="relu", draw=1)
    yield case("leaky_relu", "slope 0.01 on the left", activation="leaky_relu", draw=1)
    yield case("elu", "f'' jumps at 0", activation="elu", draw=1)
    yield case("sigmoid", "1 / (1 + exp(-z))", activation="sigmoid")
    yield case("softplus", "log(1 + exp(z))", activation="softplus")
    yield case("gelu", "with the normal distribution function, not by tanh", activation="gelu")
    yield case("silu", "also called swish", activation="silu")
    yield case("sin", "as in a SIREN", activation="sin")
    yield case("mixed", "one a layer: relu, then tanh", activation=("relu", "tanh"))


def _losses() -> Iterator[Setting]:
    case = _family("loss")
    yield case("huber", "δ = 1: quadratic and linear parts", loss="huber", draw=2)
    yield case("cross_entropy", "integer labels", loss="cross_entropy", targets="labels")
    yield case("cross_entropy-shares", "soft labels", loss="cross_entropy", targets="shares")
    yield case("binary_cross_entropy", "of logits", loss="binary_cross_entropy")
    yield case("hinge", "of classes (Weston & Watkins)", loss="hinge", targets="labels", draw=11)
    yield case("squared_hinge", "of classes", loss="squared_hinge", targets="labels", draw=2)
    yield case("poisson_nll", "of counts; outputs are log-rates", loss="poisson_nll")
    yield case("mse-one-output", "where targets may be broadcast by mistake", widths=(4, 6, 6, 1))
    yield case(
        "cross_entropy-relu",
        "the usual classifier",
        loss="cross_entropy",
        targets="labels",
        activation="relu",
    )


def _shapes() -> Iterator[Setting]:
    depth = _family("depth")
    yield depth("0", "no hidden layer: linear regression", widths=(4, 11))
    yield depth("1", "one hidden layer", widths=(4, 6, 11))
    yield depth("3", "three hidden layers", widths=(4, 6, 6, 6, 11))
    yield depth("4", "four hidden layers of different widths", widths=(4, 8, 6, 6, 9, 11))
    steps = _family("steps")
    yield steps("0", "no inner step: ordinary training on the query sets", S=0)
    for S, about in ((1, "one inner step: one Hessian"), (2, ""), (5, ""), (10, "")):
        yield steps(str(S), about or f"{S} inner steps", S=S)
    sizes = _family("size")
    yield sizes("one-task", "a sum over tasks is their mean", T=1)
    yield sizes("one-shot", "one support row", K=1)
    yield sizes("one-query", "one query row", Q=1)
    yield sizes("equal", "as many support as query rows", K=5, Q=5)
    yield sizes("one-input", "one input and one output, as for sine waves", widths=(1, 6, 6, 1))


def _step_size_kinds() -> Iterator[Setting]:
    case = _family("step-size")
    yield case("small", "α = 0.001", step_sizes=0.001)
    yield case("large", "α = 1", step_sizes=1.0)
    yield case("layer", "α for every layer", step_sizes="layer")
    yield case("step", "α for every step", step_sizes="step")
    yield case(
        "step_and_layer",
        "α for every step and layer (LSLR)",
        step_sizes="step_and_layer",
        published_as="lslr",
    )
    yield case(
        "parameter",
        "α for every parameter (Meta-SGD)",
        step_sizes="parameter",
        published_as="meta-sgd",
    )
    yield case("step_and_parameter", "α for every step and parameter", step_sizes="step_and_parameter")
    mask = _family("mask")
    yield mask("head", "the last layer alone is adapted (ANIL)", step_sizes="head", published_as="anil")
    yield mask(
        "body", "all but the last layer are adapted (BOIL)", step_sizes="body", published_as="boil"
    )
    yield mask("weights", "biases are not adapted", step_sizes="weights")
    yield mask("scattered", "every other parameter is adapted", step_sizes="every other parameter")
    warp = _family("warp", step_sizes="every other layer", widths=(4, 6, 6, 8, 8), published_as="warp")
    yield warp(
        "linear",
        "T-net: every other layer is linear, before the activation, and stands still",
        activation=("identity", "tanh", "identity", "tanh", "identity"),
        widths=(4, 5, 5, 4, 4, 8, 8),
    )
    yield warp(
        "nonlinear",
        "warp layers behind the activation, with one of their own; the last is linear",
        activation=("tanh", "silu", "identity"),
    )
    yield warp(
        "cross_entropy",
        "T-net, the usual classifier, one step",
        activation=("identity", "relu", "identity"),
        S=1,
        loss="cross_entropy",
        targets="labels",
    )
    decay = _family("weight-decay")
    yield decay("tanh", "w = 0.1 in the inner loop", weight_decay=0.1)
    yield decay(
        "relu",
        "w = 0.1, cross-entropy, α for every layer",
        weight_decay=0.1,
        activation="relu",
        loss="cross_entropy",
        targets="labels",
        step_sizes="layer",
    )
    order = _family("first-order", first_order=True, published_as="fomaml")
    yield order("tanh", "the first-order approximation is what is asked for (FOMAML)")
    yield order(
        "relu",
        "also for the usual classifier",
        activation="relu",
        loss="cross_entropy",
        targets="labels",
    )
    yield order("weight-decay", "the decay's derivative is left out too", weight_decay=0.1)
    yield order("parameter", "with α for every parameter", step_sizes="parameter")


def _normalisation() -> Iterator[Setting]:
    case = _family("norm")
    yield case("batch", "statistics of the rows of a task, transductive", norm="batch")
    yield case(
        "batch-frozen",
        "scale and shift are learned by the outer loop alone",
        norm="batch",
        adapt_norm=False,
    )
    yield case("layer", "statistics of the units of a row", norm="layer")
    yield case("layer-frozen", "the same, in the outer loop alone", norm="layer", adapt_norm=False)
    yield case(
        "batch-relu",
        "the usual classifier, one step",
        norm="batch",
        activation="relu",
        loss="cross_entropy",
        targets="labels",
        S=1,
    )


def _structure() -> Iterator[Setting]:
    case = _family("structure", published_as="structured")
    smooth, kinked = ("tanh", "sin"), ("relu", "tanh", "sin")
    yield case("both", "mixtures and gates, moved by inner steps", structure=Structure(smooth))
    yield case(
        "both-frozen",
        "the same, in the outer loop alone",
        structure=Structure(smooth, adapt=False),
    )
    yield case("gates", "gates alone", structure=Structure("tanh"))
    yield case(
        "mixture",
        "mixtures alone, of kinked and smooth activations; a classifier, one step",
        structure=Structure(kinked, gates=False),
        loss="cross_entropy",
        targets="labels",
        S=1,
    )


def _gradient_based() -> Iterator[Setting]:
    mamlpp = _family("mamlpp", algorithm="maml++", widths=(4, 6, 5, 3))
    third = (("step_weights", (0.25, 0.25, 0.5)),)
    yield mamlpp(
        "weights",
        "a loss after every step, α for every step and layer",
        step_sizes="step_and_layer",
        options=third,
    )
    yield mamlpp(
        "norm",
        "batch normalisation with scale and shift for every step",
        step_sizes="step_and_layer",
        options=third,
        norm="batch",
        adapt_norm=False,
        norm_sets=3,
    )
    yield mamlpp(
        "cross_entropy",
        "of two steps, the earlier one weighed more",
        loss="cross_entropy",
        targets="labels",
        step_sizes="step_and_layer",
        S=2,
        options=(("step_weights", (0.75, 0.25)),),
    )
    reptile = _family("reptile", algorithm="reptile", widths=(4, 6, 5, 3))
    yield reptile(
        "minibatches", "five steps on three minibatches in turn", S=5, options=(("batch_rows", 4),)
    )
    yield reptile(
        "rows-left-over", "two minibatches, and two rows in none", options=(("batch_rows", 5),)
    )
    yield reptile("all-rows", "the same rows in every step", options=(("batch_rows", 0),))
    cavia = _family("cavia", algorithm="cavia", widths=(5, 6, 6, 3), n_context=2, step_sizes=0.5)
    yield cavia("tanh", "two context parameters, three steps")
    yield cavia("one-step", "the setting of the paper: one step of size 1", S=1, step_sizes=1.0)
    yield cavia(
        "cross_entropy", "a classifier", activation="relu", loss="cross_entropy", targets="labels"
    )
    yield cavia("first-order", "the first-order approximation is what is asked for", first_order=True)
    imaml = _family("imaml", algorithm="imaml", widths=(4, 6, 3), S=0)
    yield imaml("strong", "ρ = 2: near theta", options=(("strength", 2.0),))
    yield imaml("weak", "ρ = 1.25: farther from theta", options=(("strength", 1.25),))
    yield imaml(
        "cross_entropy",
        "a classifier",
        loss="cross_entropy",
        targets="labels",
        options=(("strength", 0.5),),
    )
    lstm = _family("lstm", algorithm="lstm", widths=(4, 6, 5, 3), draw=10)
    yield lstm("exact", "losses and gradients are differentiated wherever they are seen")
    yield lstm("first-order", "they are constants, as in the paper", first_order=True)
    yield lstm(
        "small-gradients",
        "gradients below exp(-10) and above",
        loss="cross_entropy",
        targets="labels",
        changed="large",
        K=1,
        S=2,
        draw=21,
    )
    yield Setting(
        "joint", "", "one network for the rows of all tasks", algorithm="joint", widths=(4, 6, 3), S=0
    )


def _metric_learners() -> Iterator[Setting]:
    """Three classes with two rows, two rows and one; the class with one is another in every task."""
    episode = {
        "widths": (4, 6, 5),
        "loss": "cross_entropy",
        "targets": "labels",
        "n_targets": 3,
        "T": 4,
        "S": 0,
    }
    for algorithm, distances in (
        ("prototypical", ("squared_euclidean", "euclidean", "cosine")),
        ("matching", ("cosine", "euclidean")),
    ):
        case = _family(algorithm, algorithm=algorithm, **episode)
        for distance in distances:
            name, _, _ = distance.partition("_")
            yield case(
                name, f"{distance.replace('_', ' ')} distance", options=(("distance", distance),)
            )
    siamese = _family("siamese", algorithm="siamese", **episode)
    yield siamese(
        "weighted_l1", "pairs by cross-entropy", options=(("pair_loss", "weighted_l1"),), draw=1
    )
    yield siamese(
        "contrastive",
        "pairs by distance, within the margin and beyond",
        options=(("pair_loss", "contrastive"), ("margin", 2.0)),
    )
    relation = _family("relation", algorithm="relation", **{**episode, "loss": "mse"})
    yield relation("sum", "classes by the sum of their rows", options=(("relation_hidden", (6,)),))
    ridge = _family("ridge", algorithm="ridge", **episode)
    yield ridge("mse", "of values", loss="mse", targets="")
    yield ridge("cross_entropy", "of classes: rows of the identity are fitted")
    mann = _family("mann", algorithm="mann", **episode)
    sizes = (("units", 4), ("width", 3))
    yield mann("cross_entropy", "of classes, with more slots than rows", options=(*sizes, ("slots", 8)))
    yield mann(
        "few-slots",
        "of values, with fewer slots than rows: what was used least is lost",
        loss="mse",
        targets="",
        options=(*sizes, ("slots", 3)),
    )
    snail = _family("snail", algorithm="snail", **episode)
    widths = (("filters", 2), ("key_width", 3), ("value_width", 2))
    yield snail(
        "cross_entropy",
        "of classes: one block, and dilations up to the fifth row before",
        options=(("blocks", 1), ("convolutions", 3), *widths),
    )
    yield snail(
        "mse",
        "of values: two blocks",
        loss="mse",
        targets="",
        options=(("blocks", 2), ("convolutions", 2), *widths),
    )


def _edges() -> Iterator[Setting]:
    case = _family("edge")
    yield case(
        "relu-at-0",
        "zero biases and a row of zeros: z = 0 exactly; f'(0) = 0 here, 1 or ½ elsewhere",
        activation="relu",
        changed="zero row",
        also=(
            ("slope_at_0_is_1", _with_slope_at_0(RELU, 1.0)),
            ("slope_at_0_is_half", _with_slope_at_0(RELU, 0.5)),
        ),
    )
    yield case(
        "leaky_relu-at-0",
        "the same with f'(0) = 0.01 here, 1 elsewhere",
        activation="leaky_relu",
        changed="zero row",
        also=(("slope_at_0_is_1", _with_slope_at_0(leaky_relu(), 1.0)),),
    )
    yield case(
        "softplus-beyond-20",
        "pre-activations beyond 20, where some softplus are the identity, off by 2e-9",
        activation="softplus",
        changed="large",
        also=(("identity_beyond_20", _CUT_SOFTPLUS),),
    )


def _with_slope_at_0(f: Activation, slope: float) -> Activation:
    """A piecewise linear activation with another derivative at the kink."""
    return Activation(
        f.name,
        lambda z: np.where(z.real == 0, slope * z, f.f(z)),
        lambda z, a: np.where(z.real == 0, slope, f.df(z, a)),
        None,
        f.kinks,
    )


def _cut(inside: Callable[..., Array], beyond: float) -> Callable[..., Array]:
    """A derivative of softplus that is that of the identity beyond 20."""
    return lambda z, a: np.where(z.real > 20, beyond, inside(z, a))


assert SOFTPLUS.d2f is not None
_CUT_SOFTPLUS = Activation(
    "softplus",
    lambda z: np.where(z.real > 20, z, SOFTPLUS.f(z)),
    _cut(SOFTPLUS.df, 1.0),
    _cut(SOFTPLUS.d2f, 0.0),
)


#: Every case, the design first.
SETTINGS: Sequence[Setting] = [
    Setting("base", "", "the design in which no two mistakes make the same gradient"),
    *_activations(),
    *_losses(),
    *_shapes(),
    *_step_size_kinds(),
    *_normalisation(),
    *_structure(),
    *_gradient_based(),
    *_metric_learners(),
    *_edges(),
]
