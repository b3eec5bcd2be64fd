"""Calibration and quantization: Hessians, grids, GPTQ, the policy of tensors, the shipped artifact."""
