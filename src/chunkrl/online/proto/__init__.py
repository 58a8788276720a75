"""Generated from `online.proto` by `make proto`."""
