"""What is asked: made prompts, files of prompts, data sets, recorded traffic, pictures and sounds."""
