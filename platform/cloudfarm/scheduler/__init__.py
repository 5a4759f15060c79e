"""Deciding who gets what and where: pure functions and plain state, the same live and in the simulator."""
