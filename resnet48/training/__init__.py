"""Training: which subnets a step trains, with what loss, and everything around it.

Read `loop` first, the one loop for standalone nets and supernet, with `run`, the state that a step changes. `recipes`
turns the names of a YAML file into stages; `samplers` gives the archs of a step, drawn from `candidates`, `few_shot`
those of one group of a split net, `objectives` its losses and gradients. `sharing` shares a step out to processes.
`held_out` keeps images apart for samplers that adapt; `fairness` scales gradients.
Below them stand `optim` (optimizer, learning rate, moving average), `precision` (mixed precision and loss scaling),
`metrics` (log lines, metrics.csv, VisualDL), `checkpoint` (what is saved, and how it is checked when it is read), with
`tensor_files` (.pdparams and .pdopt, read without running what is in them), `run_state` (state.json) and
`foreign_weights` (those of other programs), `resume` (where a run resumes, and what must not have changed)
and `portable` (a finished run for another machine).
"""
