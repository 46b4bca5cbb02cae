"""The dialogue of TDRI as a service on Ray Serve."""
