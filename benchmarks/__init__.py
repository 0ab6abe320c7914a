"""How long one exact second-order meta-gradient takes, and how much memory, in npmeta and its peers.

Run ``python -m benchmarks`` from a checkout; ``--quick`` for a look in less than two minutes,
``--help`` for the rest. JAX and PyTorch are measured where they are installed, and not missed where
they are not.

**The work** is the loss and the exact gradient of MAML's meta-objective over all tasks of a batch, on
the cases of :mod:`benchmarks.cases`. Everybody gets the same numbers, in arrays of their own kind
made before the clock starts, and is done when the numbers are there (JAX is waited for).

**npmeta** has a column for its default (each layer in the cheaper form), for all layers dense and all
factored, and on several cores one for shards of tasks in worker processes, if npmeta finds that they
pay. The default has the say in ratios; on several cores the shards have.

**First the gradient, then the time.** Before anything is timed, every gradient is compared with that
of npmeta's default. A peer outside the tolerance (:data:`benchmarks.runner.TOLERANCE`) has DISAGREES in
its column, no time, and no say in the ratio; the command then exits with status 1.

**How it is timed.** After a warm-up (JAX compiles in it) rounds follow, each with everybody in a random
order, so that a noisy neighbour slows all of them. A turn is as many calls as fit in a moment, after
one that is not counted; every counted call is one sample. The table has the medians. After 30 seconds
no further turn begins, so a row with calls of some seconds may have one sample of each.

**The ratio** is the time of the fastest peer over npmeta's: above 1 npmeta is faster than all of
them, below 1 it is slower than one of them.

**Memory** is what one call needs at most beyond what was there before (:mod:`benchmarks.memory` has the
method): of everybody in a fresh process, in the line below the times. The ratio is that of the peer
that needs least over npmeta; where another peer is the fastest, its ratio stands at the end.

**The limit** (:mod:`benchmarks.limit`) is the time of the fewest operations that the dense or factored
form needs, at the rate of a product of 1024 × 1024 matrices of that dtype in the same process. The last
column is npmeta's time over it.

**The training run** (:mod:`benchmarks.training`) is the sinusoid of the MAML paper, sampling and Adam
included; ``--full`` makes all 70,000 iterations.

**Two settings**, each in a process of its own. *One core*: the process is confined to one core before
any library is loaded, and all are told to use one thread. *All cores*: every library has its own
defaults, except that PyTorch, whose default loses on small arrays, uses one thread or all, whichever
a trial finds faster.

What to be careful with:

* On a machine with other work to do, one core is the setting to trust. A library that waits for the
  slowest of its threads waits for whoever shares the cores: fifty times as long was seen, of npmeta
  (through OpenBLAS) as of PyTorch. The line above the table gives the load at the start. The rate of
  the matrix product suffers in the same way, and then the limit looks nearer than it is.
* Everybody shares one process for the times, and so one memory allocator. glibc, after large arrays
  were freed once, keeps more memory at hand than in a fresh process: npmeta alone took 31 ms instead of
  17 on sine-1000 in float32, the difference being page faults.
* The memory is that of arrays in use at the same time, by an allocator that is told to keep nothing. A
  program that has run for a while holds more: eager PyTorch up to three times as much.
* A float32 gradient of a ReLU network is no continuous function of rounding errors, so float32 has a
  wide tolerance. The same code meets a narrow one in the float64 rows.
* ``torch-compile`` is left out unless asked for (``--peer torch-compile``, or ``--peer all``): it
  needs a C++ compiler and up to 45 seconds a row to get going. It is slower than JAX on most cases, but
  faster on sine-1000, and two to six times as fast as eager PyTorch on every sine case; a comparison
  worth publishing has it in.

``--json FILE`` keeps every sample, the errors of every comparison, and the environment; ``--picture
FILE`` draws, and ``--read FILE`` prints and draws again what was kept.
"""
