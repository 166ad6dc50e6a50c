# SPDX-License-Identifier: Apache-2.0
"""Load the module of csrc/python, which is in the same shared library as `_core`.

So it calls the core directly. Python finds a module by its file's name, and so finds only the first
of a library's modules; the other one needs a loader that names the file.
"""

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader

from ._core import __file__ as _library

_loader = ExtensionFileLoader(__name__, _library)
_spec = spec_from_loader(__name__, _loader)
assert _spec is not None
_module = module_from_spec(_spec)
_loader.exec_module(_module)
sys.modules[__name__] = _module
