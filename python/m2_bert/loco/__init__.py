"""LoCoV1 and other long-document retrieval tasks: data, evaluation, reports."""
