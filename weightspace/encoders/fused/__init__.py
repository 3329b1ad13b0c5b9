"""Message passing over dense stacks in C: forward and backward, model by model, with edge states that stay in cache."""
