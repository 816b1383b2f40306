"""The stream processor: the pure core, the batch path, and the shells around them."""
