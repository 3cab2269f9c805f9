"""The report: plain data, its JSON, and one renderer a format."""
