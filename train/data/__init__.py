"""Data: sources of records, tokenizers, rows of fixed length, and seekable batches of them on the devices."""
