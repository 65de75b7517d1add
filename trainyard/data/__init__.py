"""The data check: every input row ends in train, val or quarantine, with a reason."""
