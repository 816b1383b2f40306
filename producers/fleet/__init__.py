"""A simulated fleet of faulty clients, and the independent oracle of what must be billed."""
