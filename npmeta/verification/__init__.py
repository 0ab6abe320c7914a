"""Oracles and checks: how to know that a gradient is right."""

from npmeta.verification.oracle import Reference, complex_step, meta_gradient, richardson

__all__ = ["Reference", "complex_step", "meta_gradient", "richardson"]
