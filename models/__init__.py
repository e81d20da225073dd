"""Everything that has weights or a gradient: encoders, heads, norms, front ends, losses.

These modules know no script, no YAML and no data set.
"""
