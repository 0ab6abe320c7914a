"""Meta-learning algorithms, one file each."""

from npmeta.algorithms.base import MetaGradient, MetaLearner, Scores
from npmeta.algorithms.baselines import Joint, Scratch, SineOracle
from npmeta.algorithms.cavia import CAVIA
from npmeta.algorithms.maml import MAML
from npmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from npmeta.algorithms.meta_sgd import MetaSGD
from npmeta.algorithms.reptile import Reptile
from npmeta.algorithms.variants import anil, boil, fomaml, lslr

__all__ = [
    "CAVIA",
    "MAML",
    "Joint",
    "MAMLPlusPlus",
    "MetaGradient",
    "MetaLearner",
    "MetaSGD",
    "Reptile",
    "Scores",
    "Scratch",
    "SineOracle",
    "anil",
    "boil",
    "fomaml",
    "lslr",
]
