"""The model of this folder as a fixture: test folders are no packages."""

import importlib.util
import pathlib
import sys

import pytest


def load_model():
    name = "crosslink_test_model"
    if name not in sys.modules:
        path = pathlib.Path(__file__).with_name("model.py")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


load_model()


@pytest.fixture
def world():
    return load_model().World()
