"""Meta-training in this process and in four workers: the same number twice."""

import numpy as np

import npmeta as nm
from npmeta.training.parallel import Sharded


def train(workers):
    maml = nm.MAML(nm.MLP([1, 20, 20, 1]), inner_lr=0.01)
    params = maml.init(np.random.default_rng(0))
    waves = nm.tasks.Sinusoid(shots=10)
    with Sharded(maml, shard_size=8, workers=workers) as sharded:
        for step in nm.meta_train(sharded, params, waves, iterations=10):
            params = step.params
    return step.loss


if __name__ == "__main__":
    print(train(workers=1))
    print(train(workers=4))
