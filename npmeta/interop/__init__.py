"""Parameters, gradients and adapted weights to and from other frameworks, none of which is imported.

===================  =============================================================================
:func:`to_theta`     what a framework holds (a module, a state dict, a pytree, a list) as npmeta's theta
:func:`grad_of`      the ``.grad`` of what PyTorch holds, in the order of theta
:func:`from_theta`   a theta, a gradient or adapted weights in the form a framework holds its own
:func:`model_of`     the :class:`~npmeta.MLP` that computes what an ``nn.Sequential`` computes
===================  =============================================================================

theta has, layer by layer in the order of the forward pass, W ``(n_in, n_out)`` row by row and then b
``(n_out,)``. Others differ in three ways, and each is settled by what can be seen, or is an error:

* **Layout.** ``"out_in"``, W as ``(n_out, n_in)``, is that of arrays named ``weight`` (PyTorch,
  Equinox), and of PyTorch tensors under any name but ``kernel``. All else is ``"in_out"``: Flax and
  Keras ``kernel``, Haiku ``w``, arrays without a name. A bias as long as the wrong side of its matrix
  is an error; a square matrix says nothing, and goes by these rules.
* **Order of layers.** Numbers in their names count (``Dense_2`` before ``Dense_10``, whatever the
  order of a dictionary that JAX has sorted; ``linear`` before ``linear_1``). A PyTorch module goes by
  the order in which its layers were registered. Other names are put in the one order in which each
  layer takes what the one before gives; if there are two such orders, it is an error.
* **Order in a layer.** A matrix and a bias are told apart by their names or, in lists, by their axes.
"""

from npmeta.interop.models import model_of
from npmeta.interop.parameters import from_theta, grad_of, to_theta

__all__ = ["from_theta", "grad_of", "model_of", "to_theta"]
