"""The model of shards and beacon that the unit tests of this room use: test folders are no packages."""

import importlib.util
import pathlib
import sys

NAME = "crosslink_test_model"
if NAME not in sys.modules:
    path = pathlib.Path(__file__).parents[2] / "unit" / "crosslink" / "model.py"
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
