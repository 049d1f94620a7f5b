"""Flow and diffusion processes: pure functions of latents and times."""
