"""The study: which recipe ranks best, by how much, how sure, at what cost. No other room imports this one.

Read `archs` (which archs are trained and ranked) and `statistics` (how sharp a truth is, how well rankings agree with
it, how sure that is).
"""
