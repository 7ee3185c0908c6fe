"""The local platform: processes of this machine that outlive the command line."""
