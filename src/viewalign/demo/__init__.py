"""The whole way in a few minutes: a made cohort, pretraining, a probe and a report."""
