"""NVIDIA DGX Cloud Lepton: the endpoint and the jobs are the platform's own."""
