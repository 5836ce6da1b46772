"""Speed and memory: of kernels (``test_bench_*.py``) and of whole models (``throughput.py``)."""
