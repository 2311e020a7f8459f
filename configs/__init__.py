"""What was run: one file an experiment."""
