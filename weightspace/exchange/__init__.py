"""Models in other formats: state dicts, flat rows, Hugging Face datasets."""
