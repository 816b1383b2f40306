"""Dead letters: reading them, and sending repaired records back."""
