"""Read and write dataset folders."""
