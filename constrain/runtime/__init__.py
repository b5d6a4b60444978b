"""The torch runtime: data and decisions on a device, generated functions, exact gradients, the Lagrangian."""
