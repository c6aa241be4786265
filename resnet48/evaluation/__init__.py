"""Evaluation: the accuracy of one subnet, and of tens of thousands that share their first blocks.

Read `accuracy` first: the batch-norm statistics of a subnet are computed (calibration), then its correct answers are
counted and its cross-entropies summed, in the columns of `counts`. The other modules do the same for a whole list:
`prefix_tree` (archs with equal first blocks share nodes), `tree_forward` (a forward pass over that tree), `journal`
(tasks whose results are files, so that nothing is lost or done twice) with its `journal_plan`, and `evaluator`, which
puts them together. `forecast` says what an evaluation will cost and how far it is. `recheck` evaluates some archs
again, to see whether stated counts are true; `inference_model` writes a subnet for use elsewhere; `truth` trains archs
on their own, to judge a ranking by.
"""
