"""Tiny runs of public Lightning projects and examples: two epochs each of their own module, on synthetic data.

Their packages stand in the folder of the zoo (see tests/zoo; all versions are in .ci/run and requirements.txt)::

    pip install --target zoo --no-deps -r tests/projects/requirements.txt
    DEADKERNEL_ZOO=zoo pytest tests/projects

Two are repositories and no packages. They are used where they have been cloned into that folder, else skipped::

    git clone --depth 1 https://github.com/ashleve/lightning-hydra-template zoo/repositories/lightning-hydra-template
    git clone --depth 1 https://github.com/Lightning-AI/pytorch-lightning zoo/repositories/pytorch-lightning

To add a project: one function under ``@project(name)`` that gives its module and a few batches, and its packages in
requirements.txt.
"""
