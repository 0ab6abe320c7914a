"""How long one exact second-order meta-gradient takes, in npmeta and in its peers.

Run ``python -m benchmarks`` from a checkout; ``--quick`` for a look in about a minute, ``--help`` for
the rest. JAX and PyTorch are measured where they are installed, and not missed where they are not.

**The work** is the loss and the exact gradient of MAML's meta-objective over all tasks of a batch, on
the cases of :mod:`benchmarks.cases`. Everybody gets the same numbers, in arrays of their own kind
made before the clock starts, and is done when the numbers are there (JAX is waited for).

**First the gradient, then the time.** Before anything is timed, every peer's loss and gradient are
compared with npmeta's. A peer outside the tolerance (:data:`benchmarks.runner.TOLERANCE`) has
DISAGREES in its column, no time, and no say in the ratio; the command then exits with status 1.

**How it is timed.** After a warm-up (JAX compiles in it) rounds follow, each with npmeta and every
peer in a random order, so that a noisy neighbour slows all of them. A turn is as many calls as fit in
a moment, after one that is not counted; every counted call is one sample. The table has the medians.

**The ratio** is the time of the fastest peer over npmeta's: above 1 npmeta is faster than all of
them, below 1 it is slower than one of them.

**Two settings**, each in a process of its own. *One core*: the process is confined to one core before
any library is loaded, and all are told to use one thread. *All cores*: every library has its own
defaults, except that PyTorch, whose default loses on small arrays, uses one thread or all, whichever
a trial finds faster.

What to be careful with:

* On a machine with other work to do, one core is the setting to trust. A library that waits for the
  slowest of its threads waits for whoever shares the cores: fifty times as long was seen, of npmeta
  (through OpenBLAS) as of PyTorch. The line above the table gives the load at the start.
* Everybody shares one process, and so one memory allocator. glibc, after large arrays were freed once,
  keeps more memory at hand than in a fresh process: npmeta alone took 31 ms instead of 17 on sine-1000
  in float32, the difference being page faults.
* A float32 gradient of a ReLU network is no continuous function of rounding errors, so float32 has a
  wide tolerance. The same code meets a narrow one in the float64 rows.
* ``torch-compile`` is left out unless asked for (``--peer torch-compile``, or ``--peer all``): it
  needs a C++ compiler and up to 45 seconds a row to get going. It is slower than JAX on most cases, but
  faster on sine-1000, and two to six times as fast as eager PyTorch on every sine case; a comparison
  worth publishing has it in.

``--json FILE`` keeps every sample, the errors of every comparison, and the environment.
"""
