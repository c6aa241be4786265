"""From image files to uint8 batches.

Read `transforms` (one image: decode, crop, resize), `folder` (which files of an image folder are images), `public_sets`
(what Paddle downloads), `datasets` (image sets and their labels), `loader` (the batches of a training run, a pure
function of seed and step) and `cache` (decoded images on disk, named by `fingerprints`; `cache_files` lists and removes
them). Pixels stay uint8 [N, 3, S, S] until they are on the device; `datasets.normalize` is the first thing a net's
input goes through.
"""
