"""The nets: one set of weights for all subnets, one subnet on its own, and how their layers are computed.

Read `supernet` first (`Supernet`, which takes the arch as an argument, `ResNet48`, one arch with weights of its own,
and `extract`, which copies a subnet out of the supernet), then `layers` (convolution, batch norm and classifier over
the first channels of a weight), `norm_statistics` (the batch-norm statistics of a subnet), `conv_algorithms` (the
fastest way to compute a convolution at each feature size), `initial_weights`, `export` (an inference model that needs
no code of this project), `int8` and `onnx_model` (other forms of it) and `zen_score` (a measure of an arch from random
weights alone).
"""
