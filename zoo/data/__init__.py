"""Tables in, batches out: reading, checking, splitting, encoding and batching, the same for every domain."""
