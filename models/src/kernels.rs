//! Kernels of the native engine: forward beside backward.
