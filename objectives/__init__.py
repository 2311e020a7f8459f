"""What is learned: one objective a file, each a factory `(backbone, vocab, **hyperparameters) -> Objective`."""
