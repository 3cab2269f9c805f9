"""Architectures of many families from public projects, randomly initialised, under the monitor for a few steps.

The zoos are not among the test dependencies, because torchvision (which some of them import) is published for the CUDA
build of torch. Put them into a folder of their own and name it in ``DEADKERNEL_ZOO``::

    pip install --target zoo --no-deps -r tests/zoo/requirements.txt
    pip install --target zoo huggingface-hub
    DEADKERNEL_ZOO=zoo pytest tests/zoo
    DEADKERNEL_ZOO=zoo python tests/zoo/coverage.py   # a table of what is read in each of them
"""
