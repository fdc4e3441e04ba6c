"""Other projects' commands, folders and layouts."""
