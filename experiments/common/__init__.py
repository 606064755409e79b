"""What experiments share: config parsing, data sets, rewards, plots."""
