"""Sets of runs: which runs a table needs, running what is missing, collecting what they measured."""
