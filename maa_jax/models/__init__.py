"""Every network of the system, one a file."""
