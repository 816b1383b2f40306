"""What publishes segments: the session, the SDK, its spool and uplinks, the gateway, the fleet."""
