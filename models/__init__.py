"""Everything that has weights or a gradient: encoders, heads, norms, front end, losses.

Nothing here knows a script, a YAML or a data set.
"""
