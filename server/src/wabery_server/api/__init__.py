"""The HTTP edge: every URL in one table, one path from a socket to a handler and back."""
