"""Downloads: datasets by name, files by URL, the Hugging Face Hub."""
