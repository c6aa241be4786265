"""What every room stands on: errors, files, settings, the machine, and the processes of a run.

Nothing in here knows of nets, images or archs. Read `errors` (what a user is told), `files` (atomic writes), `locks`
(one process at a time), `shared_work` (tasks that processes share), `arrays` (on disk, with a checksum), `pickles` (read
without running them), `archives` (which depend on their content alone), `code_version` (which code this is), `config`
(dataclass, YAML file, command line; `yaml_file` reads YAML as plain text), `options` (the settings of every command),
`machine` (settings that Paddle reads while it is imported), `signals` (what asks to stop), `streams` (output that
nobody reads any more) and `runtime` (device, ranks and collectives, messages), the only one that imports Paddle.
"""
