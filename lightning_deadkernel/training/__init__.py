"""The glue to Lightning."""
