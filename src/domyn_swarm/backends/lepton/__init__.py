"""NVIDIA DGX Cloud Lepton: swarms are endpoints and jobs are batch jobs of a workspace."""
