"""Packaging: what is installed, and why each dependency is there.

Lower bounds are near the versions the tests run with, and not searched; no
upper bounds, but for the formatter. Python 3.11 gets jax 0.10, later Pythons
the newest jax.
"""

import pathlib

import setuptools

# clu's metric writers import all of TensorFlow, but never its accelerators:
# the CPU build is a third of the size. It has wheels for Linux on x86 only.
_X86_LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
_ELSEWHERE = "sys_platform != 'linux' or platform_machine != 'x86_64'"

_REQUIRES = [
  'jax>=0.10',  # arrays, transformations, XLA
  'jaxlib>=0.10',  # comes with jax; asked which XLA_FLAGS it knows
  'flax>=0.12',  # linen modules, struct dataclasses
  'optax>=0.2.8',  # optimizers and schedules
  'orbax-checkpoint>=0.12',  # asynchronous, sharded checkpoints
  'etils[epath]>=1.9',  # paths, local and gs://, as orbax takes them
  'clu>=0.0.12',  # metric writers
  f'tensorflow-cpu>=2.21; {_X86_LINUX}',  # clu's TensorBoard writer
  f'tensorflow>=2.21; {_ELSEWHERE}',  # the same, where there is no CPU build
  'tensorboard>=2.20',  # reads what clu wrote; TensorFlow needs it too
  'tensorflow-datasets>=4.9.9',  # data sets: prompts, ShapesWorld builder
  'importlib_resources>=6',  # tensorflow-datasets imports it undeclared
  'array_record>=0.8',  # record files, read without TensorFlow
  'grain>=0.2.15',  # input pipeline whose state is checkpointed
  'ml_collections>=1.1',  # configs
  'absl-py>=2.3',  # flags, logging
  'transformers>=5',  # tokenizers, model configs, file formats
  'huggingface_hub>=1',  # released models by their ids
  'tokenizers>=0.22',  # the word tokenizer of ShapesWorld
  'ftfy>=6.3',  # prompts for HPS, cleaned as the open_clip it trained with does
  'safetensors>=0.6',  # weights: gen_rl/assets, released models
  'einops>=0.8',  # axes by name
  'jaxtyping>=0.3.5',  # shapes in signatures; the tests check them
  'PyYAML>=6',  # configs as text, in the report
  'ml_dtypes>=0.5',  # bfloat16 of torch's files
  'numpy>=2.1',  # everything on the host
  'pillow>=11',  # PNG, host JPEG, the font of rendered text
]

_TEST = [
  'pytest>=8',  # runs the tests
  'pytest-xdist>=3.6',  # on all cores
  'beartype>=0.20',  # checks the shapes stated in signatures
  'scipy>=1.14',  # reference densities, statistical tests
  'scikit-image>=0.24',  # real photographs
  'scikit-learn>=1.6',  # real photographs, reference metrics
  'ruff>=0.17,<0.18',  # style; a new minor version formats differently
  'nbclient>=0.10',  # runs the notebooks
  'nbformat>=5.10',  # reads the notebooks
  'ipykernel>=6.29',  # the kernel they run in
]

_PARITY = [
  'qwix>=0.1.8',  # adapters (LoRA) to compare ours with
  'torch>=2.13',  # the networks of diffusers and transformers run on it
  'diffusers>=0.36',  # released image generators to compare ours with
  'peft>=0.18',  # adapters of theirs
]

_OCR = [
  # brings its networks; there is none for later Pythons
  'rapidocr-onnxruntime>=1.4; python_version<"3.13"',  # reads text in pictures
]

_COLAB = [
  'matplotlib>=3.9',  # plots in the notebooks
]

_PLAN = [
  # libtpu compiles for TPUs, on any machine; jax asks for the one whose
  # programs it can read
  'jax[tpu]; platform_system=="Linux" and platform_machine=="x86_64"',
]

setuptools.setup(
  name='gen_rl',
  version='0.1.0',
  description='Reinforcement learning of visual generative models in JAX',
  long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(
    include=['gen_rl', 'gen_rl.*', 'configs', 'configs.*']
  ),
  package_data={'gen_rl': ['assets/*']},
  install_requires=_REQUIRES,
  extras_require={
    'test': _TEST + _COLAB + _PARITY + _PLAN + _OCR,
    'gpu': ['jax[cuda12]'],  # cuda13: pip install 'jax[cuda13]' instead
    'tpu': ['jax[tpu]'],
    'plan': _PLAN,
    'colab': _COLAB,
    'ocr': _OCR,
    'parity': _PARITY,  # libraries that the tests compare ours with
  },
)
