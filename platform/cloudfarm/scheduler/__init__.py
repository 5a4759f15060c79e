"""Who starts next, where, and who makes room: pure policy, the same for the live farm and for simulations."""
