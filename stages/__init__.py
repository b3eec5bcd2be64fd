"""One thin command per stage of the pipeline; `python -m stages.NAME` runs one."""
