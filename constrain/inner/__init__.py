"""Problems inside of problems and models: their optimal value and their solution as differentiable functions.

`layer` is a `torch.nn.Module` whose output is the solution of a problem, `value` and `argmin` are what
`cn.value` and `cn.argmin` compute; `FixedPoint` is the solution of an equation z = F(z). Everything runs in
float64 on a batch of rows at once.
"""

from constrain.inner.implicit import FixedPoint, Implicit
from constrain.inner.layer import Call, Layer, layer
from constrain.inner.program import Inner, compiled

__all__ = ["Call", "FixedPoint", "Implicit", "Inner", "Layer", "compiled", "layer"]
