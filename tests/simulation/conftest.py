"""The harness of the consensus tests under a name of its own: test folders are no packages."""

import importlib.util
import pathlib
import sys

if "consensus_harness" not in sys.modules:
    place = pathlib.Path(__file__).parents[1] / "unit" / "consensus" / "harness.py"
    spec = importlib.util.spec_from_file_location("consensus_harness", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["consensus_harness"] = module
    spec.loader.exec_module(module)
