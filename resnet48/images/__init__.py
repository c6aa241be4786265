"""From image files to uint8 batches.

Read `transforms` (one image: decode, crop, resize), `datasets` (which images there are, and their labels), `loader`
(the batches of a training run, a pure function of seed and step) and `cache` (decoded images on disk). Pixels stay
uint8 [N, 3, S, S] until they are on the device; `datasets.normalize` is the first thing a net's input goes through.
"""
