"""Pure functions of tensors, one per definition, each with its source."""
