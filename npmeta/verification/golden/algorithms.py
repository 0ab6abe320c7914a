"""What computes the golden cases of every algorithm."""

from __future__ import annotations

from npmeta.verification.golden.cavia import CAVIACase
from npmeta.verification.golden.episodes import MatchingCase, PrototypicalCase
from npmeta.verification.golden.imaml import IMAMLCase
from npmeta.verification.golden.lstm import LSTMCase
from npmeta.verification.golden.maml import GoldenCase
from npmeta.verification.golden.mann import MANNCase
from npmeta.verification.golden.pairs import RelationCase, SiameseCase
from npmeta.verification.golden.ridge import RidgeCase
from npmeta.verification.golden.settings import Setting
from npmeta.verification.golden.snail import SNAILCase
from npmeta.verification.golden.steps import JointCase, MAMLPlusPlusCase, ReptileCase

#: By the registry's names. What is MAML with other step sizes, or without second derivatives, is a case
#: of "maml" that says under ``published_as`` by which name. Names go into the schema too.
ALGORITHMS: dict[str, type[GoldenCase]] = {
    "maml": GoldenCase,
    "maml++": MAMLPlusPlusCase,
    "reptile": ReptileCase,
    "imaml": IMAMLCase,
    "cavia": CAVIACase,
    "lstm": LSTMCase,
    "joint": JointCase,
    "matching": MatchingCase,
    "prototypical": PrototypicalCase,
    "siamese": SiameseCase,
    "relation": RelationCase,
    "ridge": RidgeCase,
    "mann": MANNCase,
    "snail": SNAILCase,
}


def golden_case(setting: Setting) -> GoldenCase:
    """The case of a setting."""
    return ALGORITHMS[setting.algorithm](setting)
