"""Programs of derivatives: gradients backward, tangents and Jacobians forward."""
