"""Settings of the whole suite."""

import signal

from hypothesis import settings

# A shell without job control starts what goes on in the background with interrupts ignored, and so
# would its children be, whose interruption is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a red test is a change in the code, never the luck of the draw. No
# deadlines, and no database of examples left in the checkout.
settings.register_profile(
    "deterministic", derandomize=True, deadline=None, database=None, max_examples=30
)
settings.load_profile("deterministic")
