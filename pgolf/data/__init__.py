"""Documents, tokenizer, shards in the challenge's format, byte accounting, batches."""
