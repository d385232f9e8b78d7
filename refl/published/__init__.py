"""Read the published files of Stable Diffusion, DiffBIR and OpenCLIP."""
