"""Open-loop load generation, SLO sweeps, side-by-side peers and fault scenarios; knows the service over HTTP only."""
