"""TR2-D2: fine-tuning by tree search and weighted denoising."""
