"""The language model, and the one seam behind which attention kernels live."""
