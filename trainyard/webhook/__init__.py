"""Git as the trigger: a signed push starts releases, a merge request is answered with a plan.

A delivery only says where to look. What changed is read from git, in a mirror of our own.
"""
