from tests.faults.sweep import Sweep

SWEEP = Sweep("encodings", "", 0, lambda f: None, lambda s: 0, lambda s, n, f: None)
