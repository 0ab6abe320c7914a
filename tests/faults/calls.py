from tests.faults.sweep import Sweep

SWEEP = Sweep("calls", "", 0, lambda f: None, lambda s: 0, lambda s, n, f: None)
