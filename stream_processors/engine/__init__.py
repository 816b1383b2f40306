"""A partition's interval table, record by record and in columns. Pure, as `core` is."""
