"""What every room stands on: errors, files, settings, the machine, and the processes of a run.

Nothing in here knows of nets, images or archs. Read `errors` (what a user is told), `files` (atomic writes and locks),
`arrays` (on disk, with a checksum), `config` (dataclass, YAML file, command line), `options` (the settings of every
command), `machine` (settings that Paddle reads while it is imported) and `runtime` (device, ranks and collectives,
messages, signals), the only one that imports Paddle.
"""
