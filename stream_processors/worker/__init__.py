"""The worker: a Faust app that folds segments, settles orders and publishes totals exactly once."""
