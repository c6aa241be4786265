"""What follows from the accuracies: a submission, and how well it ranks the archs. No Paddle in here.

Read `submission` (write it, record in a manifest what it was made of, verify it) with `counts_file` (the sums behind
it), `provenance` (how it was made, read back) and `bundle` (all that repeats it, in one archive), then `measured`
(which numbers of a file are measurements, and which are equal) and `score` (correlation with the truth and bootstrap
`intervals`, beside the baselines that cost nothing: MACs, parameters, depth). `rankings` are other ways to rank the
archs of a submission, by cross-entropy, by `smoothing` or with MACs, which are never submitted. `gathered` reads all
that lies beside a submission, and `page` shows it in a browser, with pictures by `svg`.
"""
