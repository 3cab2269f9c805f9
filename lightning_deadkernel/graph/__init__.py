"""From a loss's autograd graph to the activations that each kernel reaches."""
