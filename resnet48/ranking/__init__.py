"""What follows from the accuracies: a submission, and how well it ranks the archs. No Paddle in here.

Read `submission` (write it, record in a manifest what it was made of, verify it), then `measured` (which numbers of a
file are measurements, and which are equal) and `score` (correlation with the truth and bootstrap intervals, beside the
baselines that cost nothing: MACs, parameters, depth; `intervals` makes the intervals).
"""
