"""What has no diffusion in it: frozen values, errors, files, random streams, processes, wavelets, charts."""
