r"""Estimators with the conventions of scikit-learn, which they do not need: meta-train, adapt, stream.

:class:`MetaEstimator` learns from tasks how to learn; what its ``adapt`` returns has learned one task,
and learns on as rows arrive.

>>> import numpy as np, npmeta as nm
>>> from npmeta.estimators import MetaEstimator
>>> waves = nm.tasks.Sinusoid(shots=10)
>>> learner = MetaEstimator("ridge", hidden=[16], iterations=50, random_state=0).fit(waves)
>>> x = np.linspace(-3, 3, 8)[:, None]
>>> wave = learner.adapt(x, np.sin(x[:, 0]))
>>> wave.predict(x).shape
(8,)
>>> wave.partial_fit([[4.0]], [np.sin(4.0)]).support_x_.shape
(9, 1)
"""

from npmeta.estimators.adapted import AdaptedEstimator
from npmeta.estimators.conventions import NotFittedError
from npmeta.estimators.meta import MetaEstimator

__all__ = ["AdaptedEstimator", "MetaEstimator", "NotFittedError"]
