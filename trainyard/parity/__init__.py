"""Is what the server answers what was trained? Tokens and log-probabilities, step by step.

`probes.py` asks the server, `reference.py` computes the same in a process that loads the adapter as
the trainer does, `compare.py` says which step broke it, `record.py` is what is kept of it, and
`check.py` does all this in order.
"""
