"""Meta-training on the workers of a Dask cluster, here one of two processes on this machine."""

import numpy as np

import npmeta as nm
from npmeta.training.parallel import Sharded

if __name__ == "__main__":
    from distributed import Client, LocalCluster

    maml = nm.MAML(nm.MLP([1, 20, 20, 1]), inner_lr=0.01)
    params = maml.init(np.random.default_rng(0))
    waves = nm.tasks.Sinusoid(shots=10)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        Sharded(maml, shard_size=8, executor=client.get_executor()) as sharded,
    ):
        for step in nm.meta_train(sharded, params, waves, iterations=10):
            params = step.params
    print(step.loss)
