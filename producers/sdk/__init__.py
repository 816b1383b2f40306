"""What runs inside a customer's program: sessions, the client, its spool and its uplinks."""
