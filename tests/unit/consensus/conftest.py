"""The harness of this folder under names that tests import: test folders are no packages."""

import importlib.util
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent


def load(name, file):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


load("consensus_harness", "harness.py")
load("consensus_solo", "solo.py")
