"""What the CPU kernels share: vector instructions as LLVM IR, the thread team, the rotation, prepared addresses."""
