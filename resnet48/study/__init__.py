"""The study: which recipe ranks best, by how much, how sure, at what cost. No other room imports this one.

Read `plan` first: from a study file to tasks. `archs` chooses which archs are trained and ranked, `trainings` does one
task, `runner` all of them, in any number of processes, and `scores` names the ways to score. What came out is read by
`results`, with `statistics` (how sharp a truth is, how well rankings agree with it, how sure that is), and written by
`report` and `pictures`.
"""
