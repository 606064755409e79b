"""DMPO: masked language models fitted to reward-tilted laws."""
