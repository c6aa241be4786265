"""Write the figures of the documentation: python3 docs/figures/make.py [--archs LIST] [--output FOLDER].

Run it after a change: the tests compare the files with what it writes. What the published list costs is counted where
the list is given, and kept in prefix_tree.json.
"""

import argparse
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", ".."))

import prefix_tree  # noqa: E402
import road  # noqa: E402
import search_space  # noqa: E402

from resnet48.system import files  # noqa: E402
from resnet48.system.errors import exit_on_user_error  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", help="the published arch list, to count its nodes and MACs again")
    parser.add_argument("--output", default=HERE, help="folder of the figures, by default the program's own")
    settings = parser.parse_args(argv)
    published = prefix_tree.costs_of_list(settings.archs) if settings.archs else prefix_tree.kept_costs()
    figures = {"road": road.draw(), "prefix_tree": prefix_tree.draw(published), "search_space": search_space.draw()}
    for name, figure in figures.items():
        files.write_text(os.path.join(settings.output, f"{name}.svg"), figure)
    files.write_json(os.path.join(settings.output, os.path.basename(prefix_tree.KEPT)), published._asdict(), indent=1)


if __name__ == "__main__":
    exit_on_user_error(main)
