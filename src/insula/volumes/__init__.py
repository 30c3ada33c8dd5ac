"""Named volumes and the directories behind them."""
