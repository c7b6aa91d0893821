"""A network as an ONNX file or an exported program: python tools/export.py CONFIG [CHECKPOINT] (--help: options)."""

from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.export import main

if __name__ == "__main__":
    raise SystemExit(run(main))
