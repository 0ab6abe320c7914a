"""Settings of the whole suite."""

from hypothesis import settings

# The same examples in every run: a red test is a change in the code, never the luck of the draw. No
# deadlines, and no database of examples left in the checkout.
settings.register_profile(
    "deterministic", derandomize=True, deadline=None, database=None, max_examples=30
)
settings.load_profile("deterministic")
