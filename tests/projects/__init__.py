"""Tiny runs of public Lightning projects and examples: two epochs each of their own module, on synthetic data.

Their packages stand in one folder with those of tests/zoo; ``.ci/projects FOLDER`` puts them there and runs the tests.
Two are repositories and no packages (lightning-hydra-template, and Lightning's own examples): they are read from clones
in ``FOLDER/repositories``. What is not there, or cannot be imported beside this PyTorch, is skipped with the reason.

To add a project: one function under ``@project(name)`` that gives its module and a few batches, and its packages in
requirements.txt.
"""
