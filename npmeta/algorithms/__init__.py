"""Meta-learning algorithms, one file each."""

from npmeta.algorithms.base import MetaGradient, MetaLearner, Scores
from npmeta.algorithms.baselines import Joint, Scratch, SineOracle
from npmeta.algorithms.cavia import CAVIA
from npmeta.algorithms.imaml import IMAML
from npmeta.algorithms.maml import MAML
from npmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from npmeta.algorithms.mann import MANN
from npmeta.algorithms.matching import MatchingNetwork
from npmeta.algorithms.meta_lstm import MetaLSTM
from npmeta.algorithms.meta_sgd import MetaSGD
from npmeta.algorithms.prototypical import PrototypicalNetwork
from npmeta.algorithms.relation import RelationNetwork
from npmeta.algorithms.reptile import Reptile
from npmeta.algorithms.ridge import RidgeHead
from npmeta.algorithms.siamese import SiameseNetwork
from npmeta.algorithms.snail import SNAIL
from npmeta.algorithms.structured import StructuredMAML
from npmeta.algorithms.variants import anil, boil, fomaml, lslr
from npmeta.algorithms.warp import Warp

__all__ = [
    "CAVIA",
    "IMAML",
    "MAML",
    "MANN",
    "SNAIL",
    "Joint",
    "MAMLPlusPlus",
    "MatchingNetwork",
    "MetaGradient",
    "MetaLSTM",
    "MetaLearner",
    "MetaSGD",
    "PrototypicalNetwork",
    "RelationNetwork",
    "Reptile",
    "RidgeHead",
    "Scores",
    "Scratch",
    "SiameseNetwork",
    "SineOracle",
    "StructuredMAML",
    "Warp",
    "anil",
    "boil",
    "fomaml",
    "lslr",
]
