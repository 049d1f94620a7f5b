"""The notebooks run from top to bottom (tiny variants), outputs stripped."""

import os
import pathlib

import nbclient
import nbformat
import pytest

_FOLDER = pathlib.Path(__file__).parent.parent / 'colab'
_NOTEBOOKS = sorted(_FOLDER.glob('*.ipynb'))


def test_there_are_notebooks():
  assert _NOTEBOOKS


@pytest.mark.parametrize('path', _NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped(path):
  for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == 'code':
      assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize('path', _NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, monkeypatch):
  monkeypatch.setenv('GEN_RL_NOTEBOOK', 'tiny')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name='python3',
    resources={'metadata': {'path': os.fspath(_FOLDER.parent)}},
  )
  client.execute()  # raises with the traceback of the cell that failed
  text = ''.join(
    output.get('text', '')
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  )
  assert 'Held-out strict accuracy' in text
  assert 'reward' in text
