"""The search space: which subnets there are, how they are written down, and what they cost. No Paddle in here.

Read `arch` first: a `SearchSpace` says which widths and depths are allowed, and a code of 51 digits is parsed once into
a frozen `ArchConfig`, which everything below the scripts works with. Then `nodes`: stem, blocks and head with their
weights, convolutions and MACs; `split`: a supernet whose weights are partly in copies. Then `arch_list`: files with
many archs; `description`: what a checkpoint and a manifest say of a net; `space_file`: a space as a YAML file; and
`checks`: which values a space and a net may have, wherever they come from.
"""
