"""What can be said about a problem before solving it: bounds, curvature, affine models."""
