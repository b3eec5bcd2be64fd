"""The shipped container: streams of codes in the order compressors like, bounded decoding."""
