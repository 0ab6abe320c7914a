"""The methods that algorithms share whose inner steps are not those of gradient descent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, DType, as_generator
from npmeta.algorithms.base import MetaParameters, Scores, both_sets, check_steps, meta_parameters
from npmeta.bilevel.objective import Batch, Objective, Risk
from npmeta.network.weights import Point

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch


class OwnSteps(ABC):
    """What carries a state of each task ``(T, n)`` from step to step: its parameters, or its context.

    A subclass says in :meth:`states` what the steps make of it, in :meth:`placed` what network it
    amounts to, and in :meth:`extra` what meta-parameters there are beside theta.
    """

    inner_steps: int
    objective: Objective

    @abstractmethod
    def states(self, given: Mapping[str, Array], support: Batch, n_steps: int) -> Iterator[Array]:
        """The states after 0, 1, .., ``n_steps`` inner steps."""

    def placed(
        self, given: Mapping[str, Array], state: Array, x: Array
    ) -> tuple[Sequence[Point], Array]:
        """The networks of a state and what they are given for inputs x: here it is their parameters."""
        return self.objective.hold(state), x

    def extra(self) -> dict[str, Array]:
        """Arrays like the meta-parameters beside theta, all of which are to be passed."""
        return {}

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: "theta" ``(P,)``."""
        rng = as_generator(rng)
        if not isinstance(self.objective, Risk):
            raise ValueError("an objective has no initial parameters; pass your own theta")
        return {"theta": self.objective.init(rng, dtype)}

    @np.errstate(all="ignore")  # what diverges shows in the result
    def adapt(
        self,
        params: ArrayLike | MetaParameters,
        support_x: ArrayLike,
        support_y: ArrayLike,
        steps: int | None = None,
    ) -> Array:
        """Every task's state after adaptation, ``(T, n)``; ``steps`` are by default ``inner_steps``."""
        given = self._given(params)
        support = self._batch(support_x, support_y, given["theta"].dtype, "support_")
        for state in self.states(given, support, self._steps(steps)):
            adapted = state
        return adapted

    @np.errstate(all="ignore")  # what diverges shows in the result
    def predict(
        self,
        params: ArrayLike | MetaParameters,
        support_x: ArrayLike,
        support_y: ArrayLike,
        query_x: ArrayLike,
        steps: int | None = None,
    ) -> Array:
        """Outputs on query inputs after adaptation, ``(T, Q, n_out)``."""
        if not isinstance(self.objective, Risk):
            raise ValueError("an objective makes no predictions; adapt, and use its parameters")
        state = self.adapt(params, support_x, support_y, steps)
        x = self.objective.model.features(self._inputs(query_x, "query_x"), state.dtype, "query_x")
        if x.ndim != 3 or len(x) != len(state):
            raise ValueError(
                f"query_x must have shape ({len(state)}, Q, n_in), as many tasks as support_x; got "
                f"{x.shape}"
            )
        return self.objective.outputs(*self.placed(self._given(params), state, x))

    @np.errstate(all="ignore")  # what diverges shows in the result
    def evaluate(
        self, params: ArrayLike | MetaParameters, tasks: TaskBatch, steps: int | None = None
    ) -> Scores:
        """Query loss (and accuracy) of every task after 0, 1, .., ``steps`` steps."""
        given = self._given(params)
        support, (x, y) = both_sets(self._batch, tasks, given["theta"].dtype)
        scored = []
        for state in self.states(given, support, self._steps(steps)):
            point, inputs = self.placed(given, state, x)
            scored.append(self.objective.score(point, (inputs, y)))
        return Scores.of_steps(scored)

    # --- for subclasses ---------------------------------------------------------------------------

    def _at(self, given: Mapping[str, Array], state: Array, batch: Batch) -> Any:
        """The loss linearised where a state is: what the objective's ``at`` gives."""
        point, x = self.placed(given, state, batch[0])
        return self.objective.at(point, (x, batch[1]))

    def _given(self, params: ArrayLike | MetaParameters) -> dict[str, Array]:
        """The meta-parameters, checked."""
        extra = self.extra()
        return meta_parameters(params, self.objective.n_params, extra, type(self).__name__, [*extra])

    def _batch(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str) -> Batch:
        return self.objective.prepare(self._inputs(x, f"{name}x"), y, dtype, name)

    def _inputs(self, x: ArrayLike, name: str) -> ArrayLike:
        """A task's inputs as the network has them."""
        return x

    def _steps(self, steps: int | None) -> int:
        return check_steps(self.inner_steps if steps is None else steps, "steps")
