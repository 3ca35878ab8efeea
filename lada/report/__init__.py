"""Tables and summaries for people. Reads CSV files only; the driver never imports it."""
