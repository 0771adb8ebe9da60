"""The server: verifies every batch before anything of it is compiled, runs its calls in workers, reports."""
