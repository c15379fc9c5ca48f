"""Write the notebook of the Python API from the text and the examples of API.md.

python -m tests.notebook > jobs/digits.ipynb
"""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "API.md"
#: The tag of the cell that installs the package.
INSTALL = "install"
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_START = """# The digits in a notebook

Choose a machine with a GPU (a free one is enough) and run all cells. The first cell installs the package where it is
missing: that takes a few minutes and restarts the session; then run all cells once more. Without a GPU, install the
extra `cpu` as README.md says.
"""
_INSTALL = """import importlib.util

if importlib.util.find_spec("vlcp_ray") is None:
    %pip install --quiet "vlcp-ray[gpu]"
    get_ipython().kernel.do_shutdown(restart=True)
"""


def notebook() -> dict[str, Any]:
    """Make the notebook, in version 4.5 of the format of nbformat."""
    texts = _BLOCK.split(PAGE.read_text(encoding="utf-8"))  # text, code, text, ...
    cells = [_cell("markdown", _START), _cell("code", _INSTALL, tags=[INSTALL])]
    cells += [_cell("code" if number % 2 else "markdown", text) for number, text in enumerate(texts) if text.strip()]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"accelerator": "GPU", "kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, text: str, tags: list[str] | None = None) -> dict[str, Any]:
    cell = {"cell_type": kind, "metadata": {"tags": tags} if tags else {}, "source": text.strip().splitlines(True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    print(json.dumps(notebook(), indent=1, ensure_ascii=False))
