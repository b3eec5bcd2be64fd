"""The quantization laboratory: many schemes from one set of Hessians, and what a scheme did to each matrix."""
