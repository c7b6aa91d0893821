"""mmcv's operators in plain PyTorch, for an mmcv without its compiled module.

mmcv-lite has the Python side of the operators, ``mmcv/ops/*.py``, and lacks only the extension module ``mmcv._ext``
that these files call. ``extension`` builds a module of that name out of the functions in this folder: one file per
group of operators, each function with its definition in words and its source. A function has the name and the
arguments of the compiled one, and writes to the same outputs. An operator without a function here raises one line when
it is called: its name, and the package that has it.

``libraries.load`` installs the module in the running process where no ``mmcv._ext`` is there. The command
``python -m mm_vitbackbones ops --install`` writes it into mmcv-lite, for all other programs (``lite``). A compiled
mmcv is never replaced.

Backbones do not know of this folder: it is imported where mmdet or mmseg is.
"""
