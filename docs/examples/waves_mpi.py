"""Meta-training on all processes of ``mpiexec -n N python -m mpi4py.futures waves_mpi.py``."""

import numpy as np

import npmeta as nm
from npmeta.training.parallel import Sharded

if __name__ == "__main__":
    from mpi4py.futures import MPIPoolExecutor

    maml = nm.MAML(nm.MLP([1, 20, 20, 1]), inner_lr=0.01)
    params = maml.init(np.random.default_rng(0))
    waves = nm.tasks.Sinusoid(shots=10)
    with MPIPoolExecutor() as executor, Sharded(maml, shard_size=8, executor=executor) as sharded:
        for step in nm.meta_train(sharded, params, waves, iterations=10):
            params = step.params
    print(step.loss)
