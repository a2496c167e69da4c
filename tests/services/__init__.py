"""Real servers, and real faults, on loopback."""
