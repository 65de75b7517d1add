"""What each stage of a release is made from and what it makes: one file per stage.

A stage's inputs are a dict whose digest names its folder (trainyard/stage.py). The same content is
not worked on twice, and a change of the code that does the work counts as a change.
"""
