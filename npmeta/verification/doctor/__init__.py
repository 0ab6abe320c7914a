"""Which mistake made a wrong meta-gradient: every known one computed, and compared with the answer."""
